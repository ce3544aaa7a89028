// What the page asks of the server; nothing else in it uses the network.

import { askForKey, authorization } from "./key.js";

/** A refusal, in the server's own words. */
export class ServerError extends Error {
  constructor(message, status = 0, retryAfter = 0) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter; // seconds
  }
}

async function request(path, { method = "GET", body, signal } = {}) {
  for (;;) {
    const key = authorization();
    let response;
    try {
      response = await fetch(path, {
        method,
        body: body && JSON.stringify(body),
        signal,
        headers: { ...key, ...(body && { "Content-Type": "application/json" }) },
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError("The server cannot be reached. Is it running?");
    }
    if (response.status === 401 && (await askForKey(key))) continue;
    if (!response.ok) throw await refusal(response);
    return response;
  }
}

async function refusal(response) {
  const retryAfter = Number(response.headers.get("Retry-After")) || 0;
  let message;
  try {
    message = (await response.json()).error.message;
  } catch {
    message = `The server answered ${response.status} ${response.statusText}`;
  }
  return new ServerError(message, response.status, retryAfter);
}

/** The names of the models. */
export async function models() {
  const { data } = await (await request("v1/models")).json();
  return data.map((model) => model.id);
}

/** A picture, given as a URL that holds it, as a model sees it. */
export async function preview(model, url, signal) {
  return (
    await request("v1/images/preview", { method: "POST", body: { model, image_url: url }, signal })
  ).json();
}

/** An answer as it is written: the chunks of a chat completion, the last one with usage and timings. */
export async function* ask(body, signal) {
  const streamed = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await request("v1/chat/completions", { method: "POST", body: streamed, signal });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message, response.status);
    yield chunk;
  }
  throw new ServerError("The connection ended before the answer did.");
}

/** The data of server-sent events. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await read(reader);
      if (done) return;
      buffer += value;
      const lines = buffer.split(/\r?\n/);
      buffer = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The connection ended before the answer did.");
  }
}
