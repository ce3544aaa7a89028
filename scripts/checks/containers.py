"""Proves docker/Dockerfile without a container engine: its very steps, each stage in a bare Debian root.

    python -m scripts.checks.containers WORK BUNDLE

Needs root, debootstrap, and an hour on two cores the first time; WORK keeps the steps that are done. RUN is a
chroot, COPY a copy of what .dockerignore lets through. At the end the server runs as its user, in a root that
cannot be written: it has to be healthy by its own HEALTHCHECK, refuse what comes without the key, answer with
it, and end at SIGTERM. Not proven so: layers, and the engine's own networks, volumes and secrets.
"""

import argparse
import base64
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "acestep_gguf/demo/pictures/shapes.png"
URL = "http://127.0.0.1:8080"
KEY = "a key for one run"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What a build needs of this machine to reach package indexes; an engine has its own ways.
FROM_HOST = ("etc/resolv.conf", "etc/hosts", "etc/ssl/certs/ca-certificates.crt")
NETWORK = re.compile(r"pip_|.*_proxy$|ssl_cert_file$|requests_ca_bundle$", re.IGNORECASE)


@dataclass
class Stage:
    """A root folder, and what its instructions have set so far."""

    root: Path
    variables: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    folder: str = "/"
    user: str = "0"
    commands: dict[str, list[str]] = field(default_factory=dict)  # of ENTRYPOINT, CMD and HEALTHCHECK

    def command(self, words: Sequence[str], mounts: Sequence[str] = (), **variables: str) -> list[str]:
        """A command of this machine that runs ``words`` in the root, as its user."""
        environment = [f"{name}={value}" for name, value in {**self.variables, **variables}.items()]
        chroot = ["chroot", f"--userspec={self.user}:{self.user}", str(self.root), "env", "-i", *environment]
        inside = shlex.join([*chroot, "sh", "-c", f"cd {self.folder} && exec {shlex.join(words)}"])
        root = shlex.quote(str(self.root))
        steps = [
            f"mount --bind {root} {root}",
            f"cd {root}",
            "mount -t proc proc proc",
            "mount --rbind /dev dev",
        ]
        return ["unshare", "--mount", "sh", "-ec", "\n".join([*steps, *mounts, f"exec {inside}"])]


def instructions(dockerfile: Path) -> Iterator[tuple[str, str]]:
    """Name and text of each instruction."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, text = line.strip().partition(" ")
            yield name, text.strip()


def build(dockerfile: Path, work: Path) -> Stage:
    """The last stage of a Dockerfile, when all of its instructions have been carried out."""
    stages: dict[str, Stage] = {}
    stage = Stage(work)
    for instruction, text in instructions(dockerfile):
        match instruction:
            case "FROM":
                image, _, name = text.partition(" AS ")
                stage = stages[name] = Stage(work / (name or "last"))
                start(image, stage.root)
            case "RUN":
                run(text, stage)
            case "COPY":
                copy(text, stage, stages)
            case "ENV":
                for name, _, value in (word.partition("=") for word in shlex.split(text)):
                    stage.variables[name] = value.replace("$PATH", stage.variables["PATH"])
            case "WORKDIR":
                stage.folder = text
                inside(stage, text).mkdir(parents=True, exist_ok=True)
            case "USER":
                stage.user = text
            case "ENTRYPOINT" | "CMD" | "HEALTHCHECK":
                stage.commands[instruction] = json.loads(text[text.index("[") :])
            case "VOLUME":
                for folder in json.loads(text):
                    inside(stage, folder).mkdir(exist_ok=True)
            case "EXPOSE" | "STOPSIGNAL":
                pass
            case _:
                raise SystemExit(f"{instruction} is no instruction that this script knows.")
    return stage


def inside(stage: Stage, path: str) -> Path:
    return (
        stage.root / stage.folder.strip("/") / path.removeprefix("./")
        if path[0] != "/"
        else stage.root / path[1:]
    )


def start(image: str, root: Path) -> None:
    """Make a bare root of the Debian that an image is of."""
    if not (done := root.with_suffix(".steps")).exists():
        suite = image.removeprefix("debian:").removesuffix("-slim")
        subprocess.run(["debootstrap", "--variant=minbase", suite, str(root)], check=True)
        done.write_text("")


def run(text: str, stage: Stage) -> None:
    """Carry out a RUN, unless WORK has it from before."""
    done = stage.root.with_suffix(".steps")
    step = json.dumps(text) + "\n"
    if step in done.read_text().splitlines(keepends=True):
        return
    print(f"RUN {text[:150]}", flush=True)
    for name in FROM_HOST:
        (stage.root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path("/", name), stage.root / name)
    network = {name: value for name, value in os.environ.items() if NETWORK.match(name)}
    subprocess.run(stage.command(["/bin/sh", "-c", text], **network), check=True)
    with done.open("a") as opened:
        opened.write(step)


def copy(text: str, stage: Stage, stages: dict[str, Stage]) -> None:
    *options, source, target = text.split()
    to = inside(stage, target)
    if options:
        (name,) = (option.removeprefix("--from=") for option in options)
        copy_folder(stages[name].root / source[1:], to)
    elif source == ".":
        allowed = [
            line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
        ]
        for path in (ROOT / name for name in allowed):
            if path.is_dir():
                copy_folder(path, to / path.name)
            else:
                shutil.copy(path, to)
    else:
        shutil.copy(ROOT / source, to)


def copy_folder(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))


def prove(stage: Stage, bundle: Path, work: Path) -> None:
    """Serve a bundle from the stage, as its container would be run with a root that cannot be written."""
    cache, secrets = work / "cache", work / "secrets"
    for folder in (cache, secrets, stage.root / "run/secrets"):
        folder.mkdir(exist_ok=True)
    os.chown(cache, int(stage.user), int(stage.user))
    (secrets / "api_key").write_text(KEY)
    mounts = [
        f"mount --bind {shlex.quote(str(bundle.resolve()))} bundle",
        f"mount --bind {shlex.quote(str(cache))} cache",
        f"mount --bind {shlex.quote(str(secrets))} run/secrets",
        "mount -t tmpfs tmpfs tmp",
        f"mount -o remount,bind,ro {shlex.quote(str(stage.root))}",
    ]
    words = [*stage.commands["ENTRYPOINT"], *stage.commands["CMD"]]
    server = subprocess.Popen(stage.command(words, mounts))
    try:
        while subprocess.run(
            stage.command(stage.commands["HEALTHCHECK"]), capture_output=True, check=False
        ).returncode:
            if server.poll() is not None:
                raise SystemExit("the server has ended.")
            time.sleep(0.5)
        print(f"healthy, as user {os.stat(f'/proc/{server.pid}').st_uid}")
        libraries = re.findall(r"libggml-cpu-\S+", Path(f"/proc/{server.pid}/maps").read_text())
        if len(set(libraries)) != 1:
            raise SystemExit(f"these libraries for a CPU are loaded, not one: {set(libraries)}")
        print(f"the library for this CPU: {libraries[0]}")
        print(f"without the key: {ask('')}")
        print(f"with the key: {ask(KEY)}")
        server.send_signal(signal.SIGTERM)
        print(f"ended at SIGTERM with {server.wait(60)}")
    finally:
        server.kill()


def ask(key: str) -> str:
    """The server's answer about a picture, or the status of its refusal."""
    picture = f"data:image/png;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"
    parts = [
        {"type": "image_url", "image_url": {"url": picture}},
        {"type": "text", "text": "What shape is at the top?"},
    ]
    body = json.dumps({"messages": [{"role": "user", "content": parts}]}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{URL}/v1/chat/completions", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return str(json.load(response)["choices"][0]["message"]["content"])
    except urllib.error.HTTPError as error:
        return str(error.code)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path, help="folder for the roots")
    parser.add_argument("bundle", type=Path, help="bundle to serve, such as the demo's")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    prove(build(ROOT / "docker/Dockerfile", work), arguments.bundle, work)


if __name__ == "__main__":
    main()
