// What if: machines that are not there yet, nodes and instances that would be gone, and what would come of it.
import type { InstanceWish, KnownDevice, Planned, PlanWish, Remedy, WishedMachine } from '../types';
import { count } from './format';
import type { PlanNode } from './nodes';

const GIB = 2 ** 30;
const MBPS_PER_GBIT = 1000;
export const DEVICES_MAX = 16;
export const MACHINES_MAX = 32;

/** How such a machine may be connected, in 10^9 bits per second; null: a usual cable is assumed. */
export const LINKS: readonly { words: string; gbitPerS: number | null }[] = [
  { words: 'a usual cable (assumed)', gbitPerS: null },
  { words: '1 Gbit/s', gbitPerS: 1 },
  { words: '2.5 Gbit/s', gbitPerS: 2.5 },
  { words: '10 Gbit/s', gbitPerS: 10 },
  { words: '25 Gbit/s', gbitPerS: 25 },
  { words: '40 Gbit/s (Thunderbolt)', gbitPerS: 40 },
  { words: '100 Gbit/s', gbitPerS: 100 },
];

export interface MachineChoice {
  device: string;
  count: number;
  /** Null: the only size that it is sold with. */
  memoryGib: number | null;
  linkGbitPerS: number | null;
}

/** How the cluster would be another one. */
export interface Change {
  without: readonly string[];
  instead: readonly string[];
  machines: readonly WishedMachine[];
}

/** The graphics cards and chips that may be chosen, by name. */
export function choosable(known: readonly KnownDevice[]): KnownDevice[] {
  return known.filter((device) => device.kind === 'gpu');
}

/** The device that is meant: its name, or words that no other device has which is not a kind of it. */
export function findKnown(text: string, known: readonly KnownDevice[]): KnownDevice | null {
  const typed = words(text);
  if (typed.length === 0) return null;
  const all = choosable(known).filter((device) => hasAll(words(device.name), typed));
  all.sort((one, other) => words(one.name).length - words(other.name).length);
  const [plainest] = all;
  if (!plainest) return null;
  // `RTX 3090` is not the Ti; `RTX` alone may be anything.
  return all.every((device) => hasAll(words(device.name), words(plainest.name))) ? plainest : null;
}

function hasAll(own: readonly string[], wanted: readonly string[]): boolean {
  return wanted.every((word) => own.includes(word));
}

function words(text: string): string[] {
  return text.toLowerCase().match(/[a-z]+|[0-9]+/g) ?? [];
}

/** `24 GiB · 936 GB/s`; of several sizes all of them. */
export function knownFacts(device: KnownDevice): string {
  const sizes =
    device.memory_gib.length > 0 ? `${device.memory_gib.join(' or ')} GiB` : 'memory of its machine';
  const speed = device.memory_bandwidth_bytes_per_s;
  return speed === null ? sizes : `${sizes} · ${Math.round(speed / 1e9).toLocaleString('en')} GB/s`;
}

/** A machine as the API wants it; `known` is what its name means, null where the node is to say what it thinks. */
export function machineWish(choice: MachineChoice, known: KnownDevice | null): WishedMachine {
  const name = known?.name ?? choice.device.trim();
  const isOneSize = known?.memory_gib.length === 1;
  const size = isOneSize || choice.memoryGib === null ? {} : { memory_total_bytes: choice.memoryGib * GIB };
  const told = [
    choice.count > 1 ? `${choice.count} × ${name}` : name,
    isOneSize || choice.memoryGib === null ? '' : `with ${choice.memoryGib} GiB`,
  ];
  return {
    name: told.filter(Boolean).join(' '),
    devices: Array.from({ length: choice.count }, () => ({ name, kind: 'gpu' as const, ...size })),
    zone: '',
    ...(choice.linkGbitPerS === null ? {} : { link_mbps: choice.linkGbitPerS * MBPS_PER_GBIT }),
  };
}

/** `2 × GeForce RTX 3090, 10 Gbit/s`. */
export function machineWords(machine: WishedMachine): string {
  const link = machine.link_mbps;
  return link ? `${machine.name}, ${link / MBPS_PER_GBIT} Gbit/s` : machine.name;
}

export function isChanged(change: Change): boolean {
  return change.without.length + change.instead.length + change.machines.length > 0;
}

export function planWish(request: InstanceWish, change: Change): PlanWish {
  return {
    ...request,
    without: [...change.without],
    instead: [...change.instead],
    machines: [...change.machines],
  };
}

/** The nodes as they would be: those of the cluster, and behind them those that are not there. */
export function imaginedNodes(nodes: readonly PlanNode[], planned: Planned): PlanNode[] {
  const added = planned.added.map((node) => ({
    node_id: node.node_id,
    name: `${node.name} (not there)`,
    is_connected: true,
    devices: [],
  }));
  return [...nodes, ...added];
}

/** What of a machine was reckoned with: `GeForce RTX 3090: 22.8 of 24 GiB taken as free, 936 GB/s (…)`. */
export function addedWords(planned: Planned): string[] {
  const told = planned.added.flatMap((node) =>
    node.devices.map((device) => {
      const free = (device.memory_free_bytes / GIB).toFixed(1);
      const whole = Number((device.memory_total_bytes / GIB).toFixed(1));
      const speed = Math.round(device.memory_bandwidth_bytes_per_s / 1e9).toLocaleString('en');
      const source = device.is_estimated ? `estimated: ${device.source}` : device.source;
      return `${device.name}: ${free} of ${whole} GiB taken as free, ${speed} GB/s (${source})`;
    }),
  );
  return [...new Set(told)];
}

/** Whether a remedy changes what is asked for, rather than only what the cluster would be. */
export function asksOtherwise(remedy: Remedy, request: InstanceWish): boolean {
  const own = Object.entries(remedy.request);
  return own.some(
    ([key, value]) => JSON.stringify(value) !== JSON.stringify(request[key as keyof InstanceWish]),
  );
}

/** `without oak and pine`, for a button; null where something else would be different, too. */
export function withoutWords(change: Change, nameOf: ReadonlyMap<string, string>): string | null {
  if (change.without.length === 0 || change.instead.length + change.machines.length > 0) return null;
  if (change.without.length > 2) return `without ${count(change.without.length, 'node')}`;
  return `without ${change.without.map((id) => nameOf.get(id) ?? id).join(' and ')}`;
}
