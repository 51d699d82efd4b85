// Nodes that want to join, as the page shows them; and what is known of those that did.
import type { Member, NodeList, Wish } from '../types';

export interface WishCard {
  nodeId: string;
  /** What the node calls itself, or the start of its id where it says nothing. */
  name: string;
  address: string;
  /** As it is sent back with an approval. */
  fingerprint: string;
  askedAt: string;
}

const GROUP = 4;
const SHORT_CHARACTERS = 32;

/** Oldest first, as they are answered. */
export function wishCards(list: NodeList | null): WishCard[] {
  return (list?.wishes ?? []).map(wishCard);
}

function wishCard(wish: Wish): WishCard {
  return {
    nodeId: wish.node_id,
    name: wish.name || wish.node_id.slice(0, 8),
    address: wish.address,
    fingerprint: wish.fingerprint,
    askedAt: wish.asked_at,
  };
}

/** A key's hash in groups of four, as people compare it. */
export function fingerprintGroups(fingerprint: string): string[] {
  const groups: string[] = [];
  for (let at = 0; at < fingerprint.length; at += GROUP) groups.push(fingerprint.slice(at, at + GROUP));
  return groups;
}

/** The first half of it: what `exo node list` shows. */
export function shortFingerprint(fingerprint: string): string {
  return fingerprintGroups(fingerprint.slice(0, SHORT_CHARACTERS)).join(' ');
}

/** Wishes that are in one list and were not in the one before, by id and key. */
export function newWishes(before: readonly WishCard[], now: readonly WishCard[]): WishCard[] {
  const known = new Set(before.map(identity));
  return now.filter((wish) => !known.has(identity(wish)));
}

function identity(wish: WishCard): string {
  return `${wish.nodeId} ${wish.fingerprint}`;
}

export function memberOf(list: NodeList | null, nodeId: string): Member | null {
  return list?.nodes.find((member) => member.node_id === nodeId) ?? null;
}

/** A moment in the reader's own time: `14:03` today, else with its date. `timeZone` is for tests. */
export function moment(iso: string, now: Date, timeZone?: string): string {
  const at = new Date(iso);
  if (Number.isNaN(at.getTime())) return iso;
  const zone = timeZone === undefined ? {} : { timeZone };
  const dayFormat = new Intl.DateTimeFormat('en', {
    ...zone,
    day: 'numeric',
    month: 'short',
    year: 'numeric',
  });
  const time = new Intl.DateTimeFormat('en', {
    ...zone,
    hour: '2-digit',
    minute: '2-digit',
    hourCycle: 'h23',
  }).format(at);
  const day = dayFormat.format(at);
  return day === dayFormat.format(now) ? time : `${day}, ${time}`;
}
