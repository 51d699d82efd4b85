// How busy each device was in the last minutes, as this page saw it: nothing older is known, nothing between is invented.
import type { ClusterState } from '../types';
import { age, percent, UNKNOWN } from './format';

export const WINDOW_MS = 5 * 60_000;
/** The state is fetched every ten seconds at the least: after so long without it, nobody looked. */
export const GAP_MS = 25_000;

/** From here on it was so; null: not known. */
export interface LoadStep {
  sinceMs: number;
  percent: number | null;
}

export interface LoadHistory {
  /** Oldest first; telemetry tells changes, so a value holds until the next. */
  steps: readonly LoadStep[];
  /** When the page last looked. */
  seenMs: number;
}

export type LoadHistories = ReadonlyMap<string, LoadHistory>;

/** The histories with what a state says now; devices that are gone are forgotten. */
export function recorded(histories: LoadHistories, state: ClusterState, nowMs: number): LoadHistories {
  return new Map(
    state.topology.nodes.flatMap((node) =>
      node.devices.map(({ device_id }) => {
        const now = node.is_connected ? state.gpu_device_state[device_id] : undefined;
        const load = now?.compute_utilization_percent ?? null;
        return [device_id, extended(histories.get(device_id), load, nowMs)] as const;
      }),
    ),
  );
}

export function extended(history: LoadHistory | undefined, load: number | null, nowMs: number): LoadHistory {
  if (!history) return { steps: [{ sinceMs: nowMs, percent: load }], seenMs: nowMs };
  let steps = [...history.steps];
  if (nowMs - history.seenMs > GAP_MS) steps.push({ sinceMs: history.seenMs, percent: null });
  if (steps.at(-1)?.percent !== load) steps.push({ sinceMs: nowMs, percent: load });
  // The last one that began before the window still tells how the window begins.
  const first = steps.findLastIndex((step) => step.sinceMs <= nowMs - WINDOW_MS);
  if (first > 0) steps = steps.slice(first);
  return { steps, seenMs: nowMs };
}

interface Span {
  fromMs: number;
  untilMs: number;
  percent: number;
}

/** What is known inside the window. */
function spans({ steps, seenMs }: LoadHistory): Span[] {
  const startMs = seenMs - WINDOW_MS;
  return steps.flatMap((step, place) => {
    const untilMs = steps[place + 1]?.sinceMs ?? seenMs;
    if (step.percent === null || untilMs <= startMs) return [];
    return [{ fromMs: Math.max(step.sinceMs, startMs), untilMs, percent: step.percent }];
  });
}

/** An SVG path for each stretch without a hole: x 0 to `width` is the window, y 0 to `height` is 100 to 0 percent. */
export function paths(history: LoadHistory | undefined, width: number, height: number): Stretch[] {
  if (!history) return [];
  const x = (ms: number) => round(width * (1 - (history.seenMs - ms) / WINDOW_MS));
  const y = (load: number) => round(height * (1 - Math.min(100, Math.max(0, load)) / 100));
  const stretches: Span[][] = [];
  for (const span of spans(history)) {
    const last = stretches.at(-1);
    if (last?.at(-1)?.untilMs === span.fromMs) last.push(span);
    else stretches.push([span]);
  }
  return stretches.map((stretch) => {
    const points = stretch.flatMap((span) => [
      `${x(span.fromMs)} ${y(span.percent)}`,
      `${x(span.untilMs)} ${y(span.percent)}`,
    ]);
    const first = stretch[0] as Span;
    const last = stretch.at(-1) as Span;
    const line = `M${points.join('L')}`;
    return { line, area: `${line}L${x(last.untilMs)} ${height}L${x(first.fromMs)} ${height}Z` };
  });
}

export interface Stretch {
  line: string;
  area: string;
}

function round(value: number): number {
  return Math.round(value * 100) / 100;
}

/** The same for those who do not see the picture: `in the last 4 min: 12 % to 98 %, 51 % on average`. */
export function loadWords(history: LoadHistory | undefined): string {
  const known = history ? spans(history) : [];
  const [first] = known;
  if (!history || !first) return `over time ${UNKNOWN}`;
  // One look is no time yet.
  if (history.seenMs - first.fromMs < 1000) return `just now: ${percent(known.at(-1)?.percent)}`;
  const loads = known.map((span) => span.percent);
  const since = `in the last ${age(history.seenMs - first.fromMs)}`;
  const [least, most] = [Math.min(...loads), Math.max(...loads)];
  const length = known.reduce((sum, span) => sum + span.untilMs - span.fromMs, 0);
  if (percent(least) === percent(most)) {
    const isWhole = length > history.seenMs - first.fromMs - 1;
    return `${since}: ${percent(most)} ${isWhole ? 'throughout' : 'whenever it was told'}`;
  }
  const work = known.reduce((sum, span) => sum + (span.untilMs - span.fromMs) * span.percent, 0);
  // Moments between holes have no length.
  const average = length > 0 ? `, ${percent(work / length)} on average` : '';
  return `${since}: ${percent(least)} to ${percent(most)}${average}`;
}
