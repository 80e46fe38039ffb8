"""flows.stores: where the servers' databases are, and who knows the password."""

from __future__ import annotations

import json

import pytest

from flows import stores
from flows.settings import Addresses, State, clean_environment, training_pool, write_client_files
from flows.stores import StoreError

AT = Addresses(4711, 5711)
WORD = "w%40rd"  # as it stands in an address
PREFECT = {"STEEL_PREFECT_DATABASE": f"postgresql://steel:{WORD}@db:5433/prefect?sslmode=require"}


@pytest.fixture(autouse=True)
def _a_driver(monkeypatch):
    monkeypatch.setattr(stores, "_driver", lambda: "psycopg")


def test_the_password_leaves_the_address_and_reaches_one_server_alone():
    assert stores.server_variables("prefect", PREFECT) == {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://steel@db:5433/prefect?sslmode=require",
        "PGPASSWORD": "w@rd",
    }
    assert stores.server_variables("mlflow", PREFECT) == stores.server_variables("worker", PREFECT) == {}
    mlflow = {"STEEL_MLFLOW_DATABASE": "postgres://steel@[::1]/mlflow", "PGPASSWORD": "word"}
    more = stores.server_variables("mlflow", mlflow)
    assert more == {"STEEL_MLFLOW_DATABASE": "postgresql://steel@[::1]/mlflow", "PGPASSWORD": "word"}
    assert stores.mlflow_database("unused", more) == "postgresql+psycopg://steel@[::1]/mlflow"


def test_no_other_process_and_no_file_knows_it(monkeypatch, tmp_path):
    for name, value in {**PREFECT, "PGPASSWORD": "w@rd"}.items():
        monkeypatch.setenv(name, value)
    state = State(tmp_path / ".steel", tmp_path)
    environment = clean_environment(state, AT, "steel:word")
    assert not [name for name, value in environment.items() if "w@rd" in value or WORD in value]
    write_client_files(state, AT, "steel:word")
    stores.same_as_before(state.stores, "prefect")
    for path in (state.env, tmp_path / "prefect.toml", state.stores):
        assert "w@rd" not in path.read_text()
        assert WORD not in path.read_text()


@pytest.mark.parametrize(
    "text",
    [
        "mysql://steel@db/prefect",
        "postgresql://steel@db",
        "postgresql:///prefect",
        "postgresql://steel:w0rd@db:port/prefect",
        "postgresql://steel@db/prefect?password=w0rd",
        "db/prefect",
        "sqlite:///x.db",
    ],
)
def test_what_is_no_such_address_is_refused_without_being_repeated(text):
    with pytest.raises(StoreError) as refused:
        stores.server_variables("prefect", {"STEEL_PREFECT_DATABASE": text})
    assert "w0rd" not in str(refused.value)
    assert "STEEL_PREFECT_DATABASE" in str(refused.value)


def test_one_database_for_both_is_refused():
    with pytest.raises(StoreError, match="two databases"):
        stores.server_variables("mlflow", {name: "postgresql://a@h/d" for name in stores.DATABASES.values()})


def test_a_server_does_not_begin_anew_because_a_shell_forgot_the_setting(tmp_path):
    path = tmp_path / "stores.json"
    stores.same_as_before(path, "prefect", {})
    assert not path.exists()
    stores.same_as_before(path, "prefect", PREFECT)
    assert json.loads(path.read_text()) == {"prefect": "postgresql://steel@db:5433/prefect?sslmode=require"}
    stores.same_as_before(path, "mlflow", {})
    with pytest.raises(StoreError, match="prefect was on postgresql://steel@db"):
        stores.same_as_before(path, "prefect", {})
    stores.same_as_before(path, "prefect", {"STEEL_PREFECT_DATABASE": "sqlite"})
    stores.same_as_before(path, "prefect", {})


def test_the_password_may_come_from_a_file(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("of-a-file\n")
    environ = {"STEEL_PREFECT_DATABASE": "postgresql://steel@db/prefect", stores.PASSWORD_FILE: str(secret)}
    assert stores.server_variables("prefect", environ)["PGPASSWORD"] == "of-a-file"
    with pytest.raises(StoreError, match="cannot be read"):
        stores.server_variables("prefect", {**environ, stores.PASSWORD_FILE: str(tmp_path / "missing")})


@pytest.mark.parametrize(
    "text", ["/folder", "s3://", "s3://key:w0rd@bucket/x", "s3://bucket/x?token=w0rd", "gs://bucket/x"]
)
def test_artifacts_want_a_bucket_and_no_key(text):
    with pytest.raises(StoreError) as refused:
        stores.artifacts({stores.ARTIFACTS: text})
    assert "w0rd" not in str(refused.value)


def test_a_pools_name_is_a_name():
    assert training_pool({}) == "steel-local"
    assert training_pool({"STEEL_TRAINING_POOL": "steel-gpu"}) == "steel-gpu"
    with pytest.raises(StoreError):
        training_pool({"STEEL_TRAINING_POOL": "a/b"})
