// Who has to agree to decisions, and what is needed where nobody leads: the same words as `exo status` has.
import type { ClusterState } from '../types';

/** What a node is to the cluster's decisions; null: it follows them. */
export type Standing = 'master' | 'votes' | 'copy' | null;

export const STANDING_WORDS = { master: 'master', votes: 'votes', copy: 'holds a copy' } as const;

export interface Agreement {
  isLed: boolean;
  /** One sentence. */
  words: string;
  /** Without a master: what a person can do. */
  nextStep: string | null;
  /** The command for when nothing else helps. */
  lastResort: string | null;
}

export function standing(state: ClusterState, nodeId: string): Standing {
  if (nodeId === state.master_node_id) return 'master';
  if (state.voters.voters.includes(nodeId)) return 'votes';
  return state.voters.replicas.includes(nodeId) ? 'copy' : null;
}

/** What a standing means, for those who ask. */
export function standingMeaning(value: Standing): string {
  if (value === 'master') return 'Leads: decisions are made here.';
  if (value === 'votes') return 'Votes: a decision counts once most voters have it on disk.';
  if (value === 'copy')
    return 'Holds a copy: every decision is on its disk, too, before it counts. It does not vote.';
  return 'Follows: it hears every decision, and none waits for it.';
}

/** `names` are those that the page has for the nodes. */
export function agreement(state: ClusterState, names: ReadonlyMap<string, string>): Agreement {
  const { voters, replicas } = state.voters;
  const nameOf = (nodeId: string) => names.get(nodeId) ?? nodeId.slice(0, 8);
  const isLed = state.master_node_id !== null;
  const [first] = voters;
  if (first === undefined) {
    // A cluster that keeps its decisions elsewhere has a master and no voters.
    return isLed
      ? led('')
      : unled('No master is reached yet. Who decides is not known here.', 'Start other nodes.', null);
  }
  const listed = voters.map(nameOf).join(', ');
  if (voters.length === 1) {
    const held = replicas.length > 0 ? `; ${replicas.map(nameOf).join(', ')} holds a copy in sync` : '';
    return isLed
      ? led(`${listed} decides${held}`)
      : unled(`No master: decisions wait for ${listed}.`, 'Start it.', `exo node forget ${first}`);
  }
  const needed = Math.floor(voters.length / 2) + 1;
  return isLed
    ? led(`${needed} of ${voters.length} voters decide: ${listed}`)
    : unled(
        `No master: ${needed} of ${voters.length} voters have to reach each other: ${listed}.`,
        'Start those that are away.',
        'exo node forget NODE…',
      );
}

function led(words: string): Agreement {
  return { isLed: true, words, nextStep: null, lastResort: null };
}

function unled(words: string, nextStep: string, lastResort: string | null): Agreement {
  return { isLed: false, words, nextStep, lastResort };
}
