"""What another node renames while a download looks for earlier artifacts."""

from pathlib import Path

from tasks.download import body


def test_work_that_is_renamed_meanwhile_is_passed_over(tmp_path, monkeypatch):
    for name in ("a-1", "b-1", "b-2.partial", "b-3.partial"):
        (tmp_path / name).mkdir()
    stat = Path.stat

    def renamed(path, **more):
        if path.name == "b-2.partial" and path.exists():
            found = stat(path, **more)
            path.rename(tmp_path / "gone")
            return found
        return stat(path, **more)

    monkeypatch.setattr(Path, "is_dir", lambda path: bool(renamed(path)))
    found = body._earlier(tmp_path / "b-3.partial")
    assert [path.name for path in found][:1] == ["b-1"]
    assert "b-2.partial" not in [path.name for path in found]
