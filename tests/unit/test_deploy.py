"""What deploy/, docker-compose.yml and Dockerfile say is true of this version."""

import configparser
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import composed
import pytest
import yaml
from composed import ROOT

from api.stack import secret_files
from jobs import profiles, settings

FILE = composed.load()
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
OVERRIDES = ("deploy/share.yml", "deploy/gpu-host.yml")
LASTING = ("postgres", "valkey", "api", "reconciler", "flower", "worker-gpu", "worker-cpu")
TARGETS = ("api", "worker-cpu", "worker-vllm")
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
PROGRAMS = Path(sys.executable).parent
# What each process takes to end by itself, seconds.
DRAINS = {
    "api": settings.Api().drain_seconds,
    "worker": settings.Worker().drain_seconds,
    "reconciler": settings.Webhooks().timeout_seconds,
    "flower": 0,
}


def process_of(command: list[str]) -> str:
    return {"serve": "api"}.get(command[0], command[0])


@pytest.mark.parametrize("name", ["docker-compose.yml", *OVERRIDES])
def test_a_compose_file_is_one_by_its_specification(name: str) -> None:
    command = [str(PROGRAMS / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(ROOT / name)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = subprocess.run([PROGRAMS / "hadolint", ROOT / "Dockerfile"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_may_do_no_more_than_it_must(name: str) -> None:
    service = SERVICES[name]
    user, group = service["user"].split(":")
    assert int(user) > 0 and int(group) > 0
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert (
        not {"privileged", "cap_add", "network_mode", "pid", "ipc"} & set(service) or service["network_mode"] == "none"
    )
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    # One that ends by itself is not started anew when it is done.
    assert service["restart"] == "unless-stopped" if name in LASTING else service["restart"] != "unless-stopped"
    assert ("healthcheck" in service) == (name in LASTING)


def test_only_the_api_is_published_and_on_loopback() -> None:
    assert {name: each["ports"] for name, each in SERVICES.items() if "ports" in each} == {
        "api": ["127.0.0.1:8000:8000"]
    }
    outside = {name for name, each in SERVICES.items() if "outside" in each.get("networks", [])}
    assert outside == {"reconciler"} and FILE["networks"]["inside"] == {"internal": True}
    assert all("inside" in each["networks"] for name, each in SERVICES.items() if name != "make-secrets")


def test_no_image_is_whatever_is_newest() -> None:
    images = [each["image"] for each in SERVICES.values()]
    froms = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.M)
    stages = composed.stages()
    assert all(re.search(r":[\w.-]*\d", image) and "latest" not in image for image in images)
    assert all(name in stages or re.search(r":\d+\.\d+", name) for name in froms)
    version = importlib.metadata.version("promptmill")
    assert {image for image in images if "promptmill" in image} == {
        f"promptmill/{name}:{version}" for name in ("api", "worker-cpu", "worker-vllm")
    }


def test_variables_are_settings_and_no_secret_is_among_them() -> None:
    for name, service in SERVICES.items():
        ours = [variable for variable in service.get("environment", {}) if variable.startswith("PROMPTMILL_")]
        assert settings.unknown_variables(ours) == [], name
        assert not set(ours) & set(settings.secrets()), name
    assert "PASSWORD: " not in (ROOT / "docker-compose.yml").read_text()


def test_each_service_is_given_the_secrets_that_it_names_and_each_secret_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    made = secret_files.ensure(folder, "postgres", "valkey")
    for name, service in SERVICES.items():
        words = json.dumps([service.get("environment", {}), service.get("command", [])])
        assert set(re.findall(r"/run/secrets/(\w+)", words)) == set(service.get("secrets", [])), name
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}
    assert used == set(FILE["secrets"]) == set(made) - {"valkey_password"}
    assert {each["file"] for each in FILE["secrets"].values()} == {f"./secrets/{name}" for name in used}
    assert folder.stat().st_mode & 0o077 == 0


def test_what_is_waited_for_has_a_health_check_or_an_end() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            lasting = other in LASTING
            assert how["condition"] == ("service_healthy" if lasting else "service_completed_successfully"), name


def test_whoever_is_stopped_has_time_to_drain() -> None:
    for name, service in SERVICES.items():
        if name in LASTING and "promptmill" in service["image"]:
            drain = DRAINS[process_of(service["command"])]
            assert composed.seconds(service["stop_grace_period"]) >= drain + 10, name


def test_each_target_is_there_and_runs_as_nobody_special() -> None:
    stages = composed.stages()
    for service in SERVICES.values():
        assert "build" not in service or service["build"]["target"] in TARGETS
    for target in TARGETS:
        lines = stages[target].splitlines()
        assert "USER 10001:10001" in lines and 'ENTRYPOINT ["promptmill"]' in lines
        assert any(line.startswith("HEALTHCHECK") for line in lines) and any(line.startswith("LABEL") for line in lines)


def test_what_goes_into_an_image_is_there_and_is_all_that_a_command_needs(tmp_path: Path) -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines, "everything is left out that is not named"
    for name in (line[1:] for line in lines if line.startswith("!")):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.M):
        assert all((tmp_path / name).exists() for name in source.split())
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    assert all((tmp_path / name).is_dir() for name in packages)
    code = f"import api.cli, jobs; assert jobs.__file__.startswith({str(tmp_path)!r}); assert (api.cli.ROOT / 'alembic.ini').exists()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})


def unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(path)
    return parser


def values(path: Path, key: str) -> list[str]:
    """Return what a key that may be repeated is set to."""
    return re.findall(rf"^{key}=(.*)$", path.read_text(), re.M)


def test_there_is_a_unit_for_each_process() -> None:
    assert {path.name for path in UNITS} == {
        f"promptmill-{name}.service" for name in ("api", "flower", "reconciler", "worker@")
    }


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_starts_a_command_of_ours_with_settings_and_secrets_that_are_there(path: Path, tmp_path: Path) -> None:
    command = values(path, "ExecStart")[0].split()
    assert re.fullmatch(r"/opt/promptmill/\.venv(-gpu)?/bin/promptmill", command[0])
    if "--profile" in command:
        assert profiles.find(command[-1]).exists()
    variables = dict(each.split("=") for line in values(path, "Environment") for each in line.split())
    assert settings.unknown_variables(list(variables)) == []
    assert not set(variables) & set(settings.secrets())
    credentials = dict(each.split(":") for each in values(path, "LoadCredential"))
    assert {value.removeprefix("%d/") for value in variables.values() if value.startswith("%d/")} == set(credentials)
    made = secret_files.ensure(tmp_path / "secrets", "127.0.0.1", "127.0.0.1")
    assert {Path(source).name for source in credentials.values()} <= set(made)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_gives_time_to_drain_and_never_gives_up(path: Path) -> None:
    service = unit(path)["Service"]
    process = process_of(values(path, "ExecStart")[0].split()[1:])
    assert service["KillSignal"] == "SIGTERM" and service["KillMode"] == "mixed"
    assert int(service["TimeoutStopSec"]) >= DRAINS[process] + 10
    assert service["Restart"] == "always" and unit(path)["Unit"]["StartLimitIntervalSec"] == "0"
    for key in ("NoNewPrivileges", "ProtectHome", "PrivateTmp", "RestrictNamespaces", "LockPersonality"):
        assert service[key] == "yes", key
    assert service["ProtectSystem"] == "strict" and service["CapabilityBoundingSet"] == ""


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_takes_a_unit(path: Path, tmp_path: Path) -> None:
    text = path.read_text().replace("/opt/promptmill/.venv-gpu/bin", str(PROGRAMS))
    copy = tmp_path / path.name
    copy.write_text(text.replace("/opt/promptmill/.venv/bin", str(PROGRAMS)))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", copy], check=False, capture_output=True, text=True)
    # Before systemd 254 two keys of the worker's unit are not known; the unit says so.
    complaints = [line for line in done.stderr.splitlines() if not re.search("'Restart(Steps|MaxDelaySec)'", line)]
    assert (done.returncode, complaints) == (0, [])


def commands() -> set[str]:
    """Return each command, as `keys create`."""
    shown = [sys.executable, "-c", "import api.cli as c, typer, json; c._add_other_commands(); g = typer.main.get_command(c.app); print(json.dumps([n if not hasattr(x, 'commands') else [f'{n} {m}' for m in x.commands] for n, x in g.commands.items()]))"]  # fmt: skip
    found = json.loads(subprocess.run(shown, check=True, capture_output=True, text=True).stdout)
    return {name for each in found for name in ([each] if isinstance(each, str) else each)}


def test_every_command_of_the_page_and_of_the_services_is_there() -> None:
    known = commands()
    page = (ROOT / "docs" / "deploy.md").read_text()
    named = re.findall(
        r"(?:promptmill|run --rm(?: -\S+| \"[^\"]*\")* admin|exec \S+ promptmill) ((?:[a-z][a-z-]*)(?: [a-z-]+)?)", page
    )
    assert named
    assert [each for each in named if each not in known and each.split()[0] not in known] == []
    for name, service in SERVICES.items():
        if "promptmill" in service["image"] and name != "admin":
            assert service["command"][0] in known, name
    targets = set(re.findall(r"--target ([\w-]+)", page + (ROOT / "Dockerfile").read_text()))
    assert targets <= set(TARGETS)


def test_the_services_that_the_page_names_are_there() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    for block in re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S):
        for name, service in yaml.safe_load(block).get("services", {}).items():
            extended = service.get("extends", {}).get("service", name)
            assert extended in SERVICES, name
    named = set(re.findall(r"docker compose (?:logs|stop|restart|pull|exec)(?: -\S+)* ([a-z][a-z-]*)", page))
    assert named <= set(SERVICES)
    units = set(re.findall(r"promptmill-[a-z]+@?(?=[\d.{]|$)", page, re.M))
    assert {f"{name}.service" for name in units} <= {path.name for path in UNITS}
