// Server-sent events of a fetch: {id, data} each, as the HTML standard splits them. EventSource can neither POST nor
// send a key.

export async function* events(response) {
  let id = "";
  let data = [];
  for await (const line of lines(response.body)) {
    if (line.startsWith("id:")) id = line.slice(3).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
    else if (line === "" && data.length) {
      yield { id, data: data.join("\n") };
      data = [];
    }
  }
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts;
  }
}
