// Reads the node's stream of changes. Only that something changed matters here: the state is fetched after it.
import { send } from './http';
import type { EventChannel, LiveParts } from './live';
import { messages } from './stream';

/** With `fetch`, because the browser's own EventSource cannot show an API key. */
export const openEvents: LiveParts['openEvents'] = (on): EventChannel => {
  const abort = new AbortController();
  void listen(abort.signal, on);
  return { close: () => abort.abort() };
};

async function listen(signal: AbortSignal, on: Parameters<LiveParts['openEvents']>[0]): Promise<void> {
  try {
    const response = await send('events', {}, signal);
    on.open();
    for await (const _message of messages(response)) on.notification();
  } catch {
    // Why it was lost is told by the state, which is fetched next.
  }
  if (!signal.aborted) on.lost();
}
