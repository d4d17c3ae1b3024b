import pytest


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("VGG_HOME", str(tmp_path_factory.mktemp("home")))
