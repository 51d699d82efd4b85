// Opens the node's stream of changes. Only that something changed matters here: the state is fetched after it.
import { apiUrl } from './http';
import type { EventChannel, LiveParts } from './live';

const NOTIFICATIONS = ['message', 'decision', 'telemetry', 'resync'];

export const openEvents: LiveParts['openEvents'] = (on): EventChannel => {
  const source = new EventSource(apiUrl('events'));
  source.addEventListener('open', on.open);
  for (const name of NOTIFICATIONS) source.addEventListener(name, on.notification);
  source.addEventListener('error', () => {
    // The browser's own retries have no back-off and say nothing about the node: they are done here.
    source.close();
    on.lost();
  });
  return source;
};
