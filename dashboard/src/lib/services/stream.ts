// Reads the server-sent events of an answer while it arrives.
import { SseParser, type SseMessage } from '../model/sse';

/** Yields each message; ends with the answer, and ends the answer when the caller stops reading. */
export async function* messages(response: Response): AsyncGenerator<SseMessage> {
  if (!response.body) return;
  const parser = new SseParser();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      yield* parser.push(value);
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}
