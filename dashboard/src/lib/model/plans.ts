// A plan as the page explains it: how fast, how sure, what each stage spends its time on, who is left out and why.
import type { Plan, Why } from '../types';
import { bytes, count, UNKNOWN } from './format';
import { layerRange } from './instances';
import { hues, nodeNames, type PlanNode } from './nodes';

export type ShareKind = 'memory' | 'load' | 'heat' | 'overhead' | 'network';

export interface Share {
  kind: ShareKind;
  ms: number;
}

export interface StageTime {
  rank: number;
  nodeName: string;
  hue: number;
  layers: string;
  /** Its own time and its hop; null where it was not reckoned. */
  ms: number | null;
  /** What of it is shown as a bar: parts of the slowest stage's time, in order; empty where that is not known. */
  shares: Share[];
  isOffloaded: boolean;
}

export interface LeftOut {
  deviceId: string;
  device: string;
  reason: string;
  /** `+1.2 ms per token`, or null where that was not asked. */
  price: string | null;
  /** The classic weighted score, 0 to 1; null where there is none. */
  score: string | null;
}

export interface PlanFacts {
  /** `about 7.7 tokens/s`, or null. */
  speed: string | null;
  /** `129 ms per token`. */
  perToken: string | null;
  basis: 'estimate' | 'measured';
  /** What the certificate says, in a few words. */
  certificate: string | null;
  isProven: boolean;
  /** How it compares with a split by memory alone. */
  baseline: string | null;
  binding: string | null;
  stages: StageTime[];
  /** Of the slowest stage: the length of a whole bar. */
  longestMs: number;
  leftOut: LeftOut[];
  isTruncated: boolean;
}

export const SHARE_WORDS: Record<ShareKind, string> = {
  memory: 'reading memory',
  load: 'others at work',
  heat: 'heat',
  overhead: 'overhead',
  network: 'network',
};

const PROVEN_PERCENT = 0.005;
const AS_FAST = 1.005;

export function planFacts(plan: Plan, nodes: readonly PlanNode[]): PlanFacts {
  const stages = stageTimes(plan, nodes);
  const told = plan.prediction;
  return {
    speed: told?.tokens_per_s == null ? null : `about ${short(told.tokens_per_s)} tokens/s`,
    perToken: told?.ms_per_token == null ? null : `${milliseconds(told.ms_per_token)} per token`,
    basis: told?.is_calibrated ? 'measured' : 'estimate',
    certificate: certificateWords(plan),
    isProven: (plan.certificate?.gap_percent ?? 1) < PROVEN_PERCENT,
    baseline: baselineWords(plan),
    binding: bindingWords(plan, nodes),
    stages,
    longestMs: Math.max(0, ...stages.map((stage) => stage.ms ?? 0)),
    leftOut: plan.excluded.map((one) => ({
      deviceId: one.device_id,
      device: deviceName(one.device_id, nodes),
      reason: one.reason,
      price: one.forcing_ms === null ? null : `${signed(one.forcing_ms)} per token`,
      score: one.score === null ? null : `score ${one.score.toFixed(2)}`,
    })),
    isTruncated: plan.is_truncated,
  };
}

/** `RTX 3060 of oak`; of a device that is gone what its id tells. */
export function deviceName(deviceId: string, nodes: readonly PlanNode[]): string {
  for (const node of nodes) {
    const device = node.devices.find((one) => one.device_id === deviceId);
    const own = device?.local_alias ?? ownName(deviceId, node.node_id);
    if (own !== null) return `${own} of ${nodeNames(nodes).get(node.node_id) ?? node.name}`;
  }
  return deviceId;
}

/** What a device is called on its node, by its id, which begins with the node's; null on another node. */
function ownName(deviceId: string, nodeId: string): string | null {
  return deviceId.startsWith(`${nodeId}/`) ? deviceId.slice(nodeId.length + 1) : null;
}

/** Milliseconds with three digits: `123 ms`, `4.56 ms`, `0.06 ms`. */
export function milliseconds(value: number | null | undefined): string {
  return value === null || value === undefined ? UNKNOWN : `${short(value)} ms`;
}

function stageTimes(plan: Plan, nodes: readonly PlanNode[]): StageTime[] {
  const hueOf = hues(nodes);
  const nameOf = nodeNames(nodes);
  return plan.stages.map((stage) => {
    const shares: Share[] = stage.shares
      ? (
          [
            { kind: 'memory', ms: stage.shares.memory_ms },
            { kind: 'load', ms: stage.shares.utilization_ms },
            { kind: 'heat', ms: stage.shares.thermal_ms },
            { kind: 'overhead', ms: stage.shares.overhead_ms },
            { kind: 'network', ms: stage.shares.network_ms },
          ] satisfies Share[]
        ).filter((share) => share.ms > 0)
      : [];
    const shared = shares.reduce((sum, share) => sum + share.ms, 0);
    return {
      rank: stage.rank,
      nodeName: nameOf.get(stage.node_id) ?? stage.node_id,
      hue: hueOf.get(stage.node_id) ?? 0,
      layers: layerRange({ startLayer: stage.start_layer, endLayer: stage.end_layer }),
      ms: stage.shares ? shared : stage.time_ms,
      shares,
      isOffloaded: stage.is_offloaded,
    };
  });
}

function certificateWords(plan: Plan): string | null {
  const gap = plan.certificate?.gap_percent;
  if (gap === null || gap === undefined) return null;
  if (gap < PROVEN_PERCENT) return 'proven: no plan is faster';
  return `a faster plan would save ${gap < 0.1 ? gap.toFixed(2) : gap.toFixed(1)} % at most`;
}

function baselineWords(plan: Plan): string | null {
  const simple = plan.baseline?.ms_per_token;
  const own = plan.prediction?.ms_per_token;
  if (!simple || !own) return null;
  const times = simple / own;
  return times < AS_FAST
    ? 'as fast as a split by memory alone'
    : `${times < 10 ? times.toFixed(times < 1.1 ? 2 : 1) : Math.round(times)} times as fast as a split by memory alone`;
}

function bindingWords(plan: Plan, nodes: readonly PlanNode[]): string | null {
  const bound = plan.binding;
  if (!bound) return null;
  const where = bound.device_ids.map((id) => deviceName(id, nodes)).join(', ');
  return `${bytes(bound.more_bytes)} more memory on ${where} would save ${milliseconds(bound.saved_ms)} per token`;
}

/** One way among several, in a line. */
export interface WayRow {
  title: string;
  /** Null where it is refused. */
  speed: string | null;
  words: string;
}

export interface WhyCard {
  /** `placed 21 Nov, 20:14, decision 17, on state 16`. */
  when: string;
  reason: string | null;
  found: string;
  again: string;
  isIdentical: boolean | null;
  differences: string[];
  ways: WayRow[];
  changes: string[];
  today: WayRow | null;
  notes: string[];
  /** All decisions, for choosing one of them. */
  decisions: { index: number | null; words: string; isShown: boolean }[];
  plan: Plan;
}

export function whyCard(why: Why, nodes: readonly PlanNode[], moment: (at: string) => string): WhyCard {
  const { explained } = why;
  const shown = explained.decision;
  const at = shown.at === null ? 'at a time that the log no longer tells' : moment(shown.at);
  const index = shown.index === null ? '' : `, decision ${shown.index}`;
  return {
    when: `${shown.kind === 'placed' ? 'Placed' : 'Moved'} ${at}${index}, on state ${shown.plan.state_index}`,
    reason: shown.reason,
    found: `found by ${shown.plan.method}${shown.plan.solve_ms === null ? '' : ` in ${milliseconds(shown.plan.solve_ms)}`}`,
    again: againWords(explained),
    isIdentical: explained.is_identical,
    differences: explained.differences,
    ways: explained.alternatives.map((way) => wayRow(way, nodes)),
    changes: why.changes,
    today: why.today === null ? null : wayRow(why.today, nodes),
    notes: why.notes,
    decisions: why.decisions.map((one) => ({
      index: one.index,
      words: `${one.kind}${one.at === null ? '' : ` ${moment(one.at)}`}, ${count(one.plan.stages.length, 'stage')}`,
      isShown: one.index === shown.index,
    })),
    plan: shown.plan,
  };
}

function againWords(explained: Why['explained']): string {
  if (explained.omitted !== null) return `It cannot be made again: ${explained.omitted}.`;
  if (explained.is_identical && explained.again?.title === 'Weighed again')
    return 'Of plans nearly as fast it took the one that moves the fewest weights. Weighed again, its figures are the same.';
  if (explained.is_identical)
    return 'Made again on what it was made on: the same answer, to the last figure.';
  return 'Made again on what it was made on, the answer is another one now:';
}

function wayRow(way: Why['explained']['alternatives'][number], nodes: readonly PlanNode[]): WayRow {
  if (!way.plan) return { title: way.title, speed: null, words: way.refusal?.message ?? '' };
  const stages = planFacts(way.plan, nodes).stages;
  return {
    title: way.title,
    speed: planFacts(way.plan, nodes).speed?.replace('about ', '') ?? UNKNOWN,
    words: stages.map((stage) => `${stage.nodeName} ${stage.layers}`).join(' → '),
  };
}

function signed(ms: number): string {
  return `${ms >= 0 ? '+' : '−'}${milliseconds(Math.abs(ms))}`;
}

/** Three digits at most, without an exponent: `1,667`, `7.73`, `0.06`. */
export function short(value: number): string {
  if (value === 0) return '0';
  const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))));
  return Number(value.toFixed(Math.min(digits, 6))).toLocaleString('en', { maximumFractionDigits: 6 });
}
