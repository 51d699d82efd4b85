// Reads server-sent events out of text that arrives in pieces of any size.

export interface SseMessage {
  event: string;
  data: string;
}

/** Keeps what is unfinished between pieces; `push` returns the messages that a piece completes. */
export class SseParser {
  #line = '';
  #endedWithCarriageReturn = false;
  #isFirst = true;
  #event = '';
  #data: string[] = [];

  push(text: string): SseMessage[] {
    const messages: SseMessage[] = [];
    for (const character of this.#withoutMark(text)) {
      // "\r\n" is one line end, also when a piece ends between the two.
      const isSecondHalf = character === '\n' && this.#endedWithCarriageReturn;
      this.#endedWithCarriageReturn = character === '\r';
      if (isSecondHalf) continue;
      if (character !== '\n' && character !== '\r') {
        this.#line += character;
        continue;
      }
      const line = this.#line;
      this.#line = '';
      if (line === '') this.#dispatch(messages);
      else this.#field(line);
    }
    return messages;
  }

  #withoutMark(text: string): string {
    if (!this.#isFirst || text === '') return text;
    this.#isFirst = false;
    return text.startsWith('\uFEFF') ? text.slice(1) : text;
  }

  #field(line: string): void {
    const colon = line.indexOf(':');
    if (colon === 0) return;
    const name = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? '' : line.slice(colon + 1);
    if (value.startsWith(' ')) value = value.slice(1);
    if (name === 'data') this.#data.push(value);
    else if (name === 'event') this.#event = value;
  }

  #dispatch(messages: SseMessage[]): void {
    if (this.#data.length > 0) {
      messages.push({ event: this.#event || 'message', data: this.#data.join('\n') });
    }
    this.#event = '';
    this.#data = [];
  }
}
