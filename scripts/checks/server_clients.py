"""Ask a server by clients that others wrote: openai for JavaScript, llm, LiteLLM, schemathesis.

    acestep-gguf convert acestep_gguf/demo demo-bundle -q Q4_K_M
    python -m scripts.checks.server_clients --work /tmp/server-clients demo-bundle

They are installed into ``--work``, the first time. Without npm, JavaScript is left out, and said to be. The
official Python client's calls are in tests/acestep_gguf/server.
"""

import argparse
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from acestep_gguf.demo.questions import CHECKPOINT
from scripts.checks.server_load import started

QUESTION: Final = "What number is shown?"
PICTURE: Final = CHECKPOINT / "pictures/number.webp"
ANSWER: Final = "7621"
PACKAGES: Final = ("litellm", "llm", "schemathesis")

LITELLM: Final = """
import base64, sys
import litellm
url, model, picture, question = sys.argv[1:]
data = "data:image/webp;base64," + base64.b64encode(open(picture, "rb").read()).decode()
content = [{"type": "image_url", "image_url": {"url": data}}, {"type": "text", "text": question}]
messages = [{"role": "user", "content": content}]
asked = dict(model=f"openai/{model}", api_base=f"{url}/v1", api_key="none", messages=messages)
print(litellm.completion(**asked).choices[0].message.content)
pieces = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**asked, stream=True)]
print("".join(pieces))
"""
JAVASCRIPT: Final = """
import OpenAI from "openai";
import { readFileSync } from "node:fs";
const [url, model, picture, question] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const data = "data:image/webp;base64," + readFileSync(picture, "base64");
const messages = [{ role: "user", content: [
  { type: "image_url", image_url: { url: data } }, { type: "text", text: question } ] }];
const whole = await client.chat.completions.create({ model, messages });
console.log(whole.choices[0].message.content);
let text = "";
for await (const chunk of await client.chat.completions.create({ model, messages, stream: true }))
  text += chunk.choices[0]?.delta?.content ?? "";
console.log(text);
const input = [{ role: "user", content: [
  { type: "input_image", image_url: data, detail: "auto" }, { type: "input_text", text: question } ] }];
console.log((await client.responses.create({ model, input })).output_text);
"""
LLM_MODELS: Final = """- model_id: demo
  model_name: {model}
  api_base: {url}/v1
  vision: true
  can_stream: true
"""


class Clients:
    """Each asks about the number in a picture, and gives what was answered."""

    def __init__(self, work: Path, url: str, model: str) -> None:
        self._work = work
        self._bin = work / "venv/bin"
        self._url = url
        self._asked = [url, model, str(PICTURE), QUESTION]
        (work / "llm").mkdir(exist_ok=True)
        (work / "llm/extra-openai-models.yaml").write_text(LLM_MODELS.format(model=model, url=url))
        if not (self._bin / "schemathesis").exists():
            venv.create(work / "venv", with_pip=True)
            self._run([str(self._bin / "pip"), "install", "-q", *PACKAGES])

    def litellm(self) -> list[str]:
        return self._run([str(self._bin / "python"), "-c", LITELLM, *self._asked]).split()

    def llm(self) -> list[str]:
        env = {"LLM_USER_PATH": str(self._work / "llm")}
        command = [str(self._bin / "llm"), "-m", "demo", "--key", "none", QUESTION, "-a", str(PICTURE)]
        return [self._run([*command, *options], env).strip() for options in ([], ["--no-stream"])]

    def javascript(self) -> list[str]:
        if shutil.which("npm") is None:
            return ["left out: there is no npm"]
        if not (self._work / "node_modules/openai").exists():
            self._run(["npm", "install", "--silent", "--prefix", str(self._work), "openai"])
        script = self._work / "ask.mjs"
        script.write_text(JAVASCRIPT)
        return self._run(["node", str(script), *self._asked]).split()

    def schemathesis(self) -> list[str]:
        checks = "not_a_server_error,status_code_conformance,content_type_conformance"
        command = [str(self._bin / "schemathesis"), "run", f"{self._url}/openapi.json", "--checks", checks]
        limits = ["--max-examples", "50", "--phases", "examples,coverage,fuzzing", "--seed", "1"]
        self._run([*command, *limits])
        return [ANSWER]

    def _run(self, command: list[str], env: Mapping[str, str] | None = None) -> str:
        done = subprocess.run(
            command,
            cwd=self._work,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {(done.stdout + done.stderr)[-3000:]}")
        return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    failed = False
    with started(arguments.bundle, ["--no-cache", "--max-tokens", "200"]) as (url, _):
        clients = Clients(work, url, arguments.bundle.resolve().name)
        asking: tuple[Callable[[], list[str]], ...] = (
            *(clients.javascript, clients.llm, clients.litellm),
            clients.schemathesis,
        )
        for ask in asking:
            try:
                got = ask()
            except RuntimeError as error:
                got = [str(error)]
            is_right = bool(got) and all(ANSWER in text or text.startswith("left out") for text in got)
            failed |= not is_right
            print(f"{ask.__name__}: {'; '.join(got)} {'' if is_right else '**wrong**'}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
