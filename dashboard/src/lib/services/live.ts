// Keeps the page's state fresh: fetches it when the node says that something changed, and comes back after a loss.
import { backoffMs } from '../model/backoff';
import { Coalescer, type Timers } from '../model/coalesce';
import { isLocked } from '../model/keys';
import { wordsOf } from '../model/problems';
import type { ClusterState } from '../types';

export type Connection =
  | { status: 'connecting' }
  | { status: 'live' }
  /** The node answers, its event stream does not: the state is fetched now and then instead. */
  | { status: 'catching-up' }
  /** The node answers and wants a key, or another one; it is asked again when a person has done something. */
  | { status: 'locked'; reason: string }
  | { status: 'unreachable'; reason: string; sinceMs: number; nextTryMs: number };

export interface EventChannel {
  close(): void;
}

export interface LiveParts {
  fetchState: () => Promise<ClusterState>;
  /** Opens `/events`; calls back when open, on each notification, and once when it is lost. */
  openEvents: (on: { open: () => void; notification: () => void; lost: () => void }) => EventChannel;
  onState: (state: ClusterState) => void;
  onConnection: (connection: Connection) => void;
  timers: Timers;
  random: () => number;
}

const FETCH_INTERVAL_MS = 250;
/** Without any notification for so long the state is fetched anyway: a cut cable says nothing. */
const QUIET_MS = 10_000;

export class LiveState {
  #channel: EventChannel | null = null;
  #isOpen = false;
  #isStopped = false;
  #failures = 0;
  #lostChannels = 0;
  #unreachableSinceMs: number | null = null;
  #cancelRetry: (() => void) | null = null;
  #cancelReopen: (() => void) | null = null;
  #cancelQuiet: (() => void) | null = null;
  readonly #fetches: Coalescer;

  constructor(private readonly parts: LiveParts) {
    this.#fetches = new Coalescer(() => this.#fetch(), FETCH_INTERVAL_MS, parts.timers);
  }

  start(): void {
    this.parts.onConnection({ status: 'connecting' });
    this.#fetches.request();
  }

  stop(): void {
    this.#isStopped = true;
    this.#fetches.stop();
    this.#closeChannel();
    for (const cancel of [this.#cancelRetry, this.#cancelReopen, this.#cancelQuiet]) cancel?.();
  }

  /** Fetch the state soon: after a command of one's own, or when a person asks for it. */
  refresh(): void {
    this.#cancelRetry?.();
    this.#cancelRetry = null;
    this.#fetches.request();
  }

  /** Begin anew, stream and all: another key is used from now on. */
  restart(): void {
    this.#closeChannel();
    this.#cancelReopen?.();
    this.#cancelReopen = null;
    this.parts.onConnection({ status: 'connecting' });
    this.refresh();
  }

  async #fetch(): Promise<void> {
    try {
      const state = await this.parts.fetchState();
      if (this.#isStopped) return;
      this.parts.onState(state);
      this.#reached();
    } catch (error) {
      if (!this.#isStopped) this.#failed(error);
    }
  }

  #reached(): void {
    this.#failures = 0;
    this.#unreachableSinceMs = null;
    this.#watchQuiet();
    if (!this.#channel && !this.#cancelReopen) this.#openChannel();
    this.#tellConnection();
  }

  #failed(error: unknown): void {
    const { timers } = this.parts;
    this.#closeChannel();
    this.#cancelReopen?.();
    this.#cancelReopen = null;
    this.#cancelQuiet?.();
    this.#cancelRetry?.();
    if (isLocked(error)) {
      // Asking on and on with a wrong key would be taken for guessing.
      this.#failures = 0;
      this.#unreachableSinceMs = null;
      this.parts.onConnection({ status: 'locked', reason: wordsOf(error) });
      return;
    }
    this.#unreachableSinceMs ??= timers.now();
    const waitMs = backoffMs(this.#failures++, this.parts.random());
    this.parts.onConnection({
      status: 'unreachable',
      reason: wordsOf(error),
      sinceMs: this.#unreachableSinceMs,
      nextTryMs: timers.now() + waitMs,
    });
    this.#cancelRetry = timers.after(waitMs, () => this.refresh());
  }

  #openChannel(): void {
    const isCurrent = () => this.#channel === channel;
    const channel = this.parts.openEvents({
      open: () => {
        if (!isCurrent()) return;
        this.#isOpen = true;
        this.#tellConnection();
        // What changed while nobody listened.
        this.#fetches.request();
      },
      notification: () => {
        if (!isCurrent()) return;
        this.#lostChannels = 0;
        this.#fetches.request();
      },
      lost: () => {
        if (isCurrent()) this.#lost();
      },
    });
    this.#channel = channel;
  }

  #lost(): void {
    this.#closeChannel();
    const waitMs = backoffMs(this.#lostChannels++, this.parts.random());
    this.#tellConnection();
    this.#cancelReopen = this.parts.timers.after(waitMs, () => {
      this.#cancelReopen = null;
      this.#openChannel();
    });
    // Says at once whether the node is gone or only the stream is.
    this.#fetches.request();
  }

  #closeChannel(): void {
    this.#channel?.close();
    this.#channel = null;
    this.#isOpen = false;
  }

  #watchQuiet(): void {
    this.#cancelQuiet?.();
    this.#cancelQuiet = this.parts.timers.after(QUIET_MS, () => this.#fetches.request());
  }

  #tellConnection(): void {
    if (this.#unreachableSinceMs !== null) return;
    const waiting = this.#lostChannels > 0 ? 'catching-up' : 'connecting';
    this.parts.onConnection({ status: this.#isOpen ? 'live' : waiting });
  }
}
