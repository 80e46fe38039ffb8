"""The metrics of one run: no step twice, and few questions to the server."""

from __future__ import annotations

from tasks.stage.tracking import RunTrack


class Server:
    """Stands for the Tracker: what a run has, what was asked, what was sent."""

    def __init__(self, **last_step: int):
        self.last_step, self.asked, self.sent = last_step, [], []

    def logged(self, run_id):
        self.asked.append("names")
        return set(self.last_step)

    def logged_step(self, run_id, name):
        self.asked.append(name)
        return self.last_step[name]

    def metrics(self, run_id, rows):
        self.sent += rows


def test_a_new_run_is_asked_once_for_all_its_metrics():
    server = Server()
    track = RunTrack(server, "r")
    for step in (1, 2):
        track.metrics({f"loss_by_source/{i}": 1.0 for i in range(100)}, step)
    track.flush()
    assert server.asked == ["names"]
    assert len(server.sent) == 200


def test_a_reopened_run_gets_no_step_twice():
    server = Server(loss=3)
    track = RunTrack(server, "r")
    for step in (2, 3, 4):
        track.metrics({"loss": 1.0, "mfu": 0.4}, step)
    track.flush()
    assert server.asked == ["names", "loss"]
    assert sorted(server.sent) == [("loss", 1.0, 4), ("mfu", 0.4, 2), ("mfu", 0.4, 3), ("mfu", 0.4, 4)]
