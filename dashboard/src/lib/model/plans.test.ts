import { describe, expect, it } from 'vitest';
import instanceAnswer from '../../../../tests/browser/fixtures/instance.json';
import stateAnswer from '../../../../tests/browser/fixtures/state.json';
import type { ClusterState, Instance, Plan, Why } from '../types';
import { deviceName, milliseconds, planFacts, short, whyCard } from './plans';

const { nodes } = (stateAnswer as unknown as ClusterState).topology;
const base = (instanceAnswer as unknown as Instance).plan;
const [first] = base.stages;
const shares = { memory_ms: 2, utilization_ms: 0, thermal_ms: 0.5, overhead_ms: 0.25, network_ms: 0.25 };

function plan(changes: Partial<Plan>): Plan {
  return { ...base, ...changes };
}

function stages(...times: (typeof shares | null)[]): Plan['stages'] {
  return times.map((told, rank) => ({ ...first!, rank, time_ms: 3, shares: told }));
}

describe('a plan in words', () => {
  it('says how fast it is thought to be, and what that rests on', () => {
    const told = { ms_per_token: 46.94, tokens_per_s: 21.3, is_calibrated: false };
    expect(planFacts(plan({ prediction: told }), nodes)).toMatchObject({
      speed: 'about 21.3 tokens/s',
      perToken: '46.9 ms per token',
      basis: 'estimate',
    });
    expect(planFacts(plan({ prediction: { ...told, is_calibrated: true } }), nodes).basis).toBe('measured');
    expect(planFacts(plan({ prediction: null }), nodes)).toMatchObject({ speed: null, perToken: null });
  });

  it.each([
    [0, 'proven: no plan is faster', true],
    [0.02, 'a faster plan would save 0.02 % at most', false],
    [4.26, 'a faster plan would save 4.3 % at most', false],
    [null, null, false],
  ])('says how far from the best it is at most: %s', (gap, words, isProven) => {
    const facts = planFacts(plan({ certificate: { lower_bound_ms: 1, gap_percent: gap } }), nodes);
    expect(facts).toMatchObject({ certificate: words, isProven });
  });

  it.each([
    [1, 'as fast as a split by memory alone'],
    [1.06, '1.06 times as fast as a split by memory alone'],
    [4.41, '4.4 times as fast as a split by memory alone'],
    [23, '23 times as fast as a split by memory alone'],
  ])('compares with a split by memory: %s', (times, words) => {
    const prediction = { ms_per_token: 2, tokens_per_s: 500, is_calibrated: false };
    const baseline = { ...prediction, ms_per_token: 2 * times };
    expect(planFacts(plan({ prediction, baseline }), nodes).baseline).toBe(words);
    expect(planFacts(plan({ prediction, baseline: null }), nodes).baseline).toBeNull();
  });

  it('cuts a stage into what it spends its time on, and leaves out what takes none', () => {
    const facts = planFacts(plan({ stages: stages(shares, null) }), nodes);
    expect(facts.stages[0]?.shares.map((share) => share.kind)).toEqual([
      'memory',
      'heat',
      'overhead',
      'network',
    ]);
    expect(facts.stages.map((stage) => stage.ms)).toEqual([3, 3]);
    expect(facts.stages[1]?.shares).toEqual([]);
    expect(facts.longestMs).toBe(3);
  });

  it('names devices as people know them, those that are gone by their id', () => {
    const [node] = nodes;
    const [device] = node!.devices;
    expect(deviceName(device!.device_id, nodes)).toBe(`${device!.local_alias} of ${node!.name}`);
    expect(deviceName('gone/cuda:9', nodes)).toBe('gone/cuda:9');
    expect(deviceName(`${node!.node_id}/cuda:9`, nodes)).toBe(`cuda:9 of ${node!.name}`);
  });

  it('tells the price of a device that is left out, and the memory that binds', () => {
    const id = nodes[0]!.devices[0]!.device_id;
    const facts = planFacts(
      plan({
        excluded: [
          { device_id: id, reason: 'slower', forcing_ms: 1.234, score: null },
          { device_id: 'x', reason: 'failed', forcing_ms: null, score: null },
          { device_id: 'y', reason: 'better without', forcing_ms: -0.5, score: 0.4 },
        ],
        binding: { device_ids: [id], more_bytes: 2 ** 30, saved_ms: 0.74 },
      }),
      nodes,
    );
    expect(facts.leftOut.map((one) => one.price)).toEqual(['+1.23 ms per token', null, '−0.5 ms per token']);
    expect(facts.leftOut.map((one) => one.score)).toEqual([null, null, 'score 0.40']);
    expect(facts.binding).toMatch(/^1 GiB more memory on .+ would save 0.74 ms per token$/);
  });

  it.each([
    [0, '0'],
    [1666.7, '1,667'],
    [7.734, '7.73'],
    [0.0612, '0.0612'],
    [123.4, '123'],
    [0.0000001, '0'],
  ])('writes %s with three digits', (value, words) => {
    expect(short(value)).toBe(words);
    expect(milliseconds(null)).toBe('–');
  });
});

describe('why an instance is where it is', () => {
  const decision = {
    kind: 'placed' as const,
    index: 17,
    at: '2026-01-01T00:00:00Z',
    reason: null,
    plan: base,
  };
  const request = (instanceAnswer as unknown as Instance).request;
  const way = { title: 'Fewest nodes', request, plan: base, refusal: null, remedy: null };
  const why: Why = {
    instance_id: 'i',
    model_id: 'exo-tiny',
    request,
    decisions: [decision],
    explained: {
      decision,
      request,
      omitted: null,
      again: way,
      is_identical: true,
      differences: [],
      alternatives: [way],
    },
    changes: [],
    today: null,
    deleted_at: null,
    notes: [],
  };
  const at = (iso: string): string => `at ${iso.slice(0, 4)}`;

  it('tells when, by which decision, and that the answer is the same', () => {
    const card = whyCard(why, nodes, at);
    expect(card.when).toBe(`Placed at 2026, decision 17, on state ${base.state_index}`);
    expect(card.again).toContain('the same answer, to the last figure');
    expect(card.ways[0]?.title).toBe('Fewest nodes');
    expect(card.ways[0]?.words).toContain('layer');
    expect(card.decisions).toMatchObject([{ index: 17, isShown: true }]);
  });

  it('tells where the log no longer reaches, and why it cannot be made again', () => {
    const bare = { ...decision, index: null, at: null, kind: 'moved' as const, reason: 'oak is lost' };
    const explained = { ...why.explained, decision: bare, omitted: 'it was not kept', is_identical: null };
    const card = whyCard({ ...why, explained, decisions: [bare] }, nodes, at);
    expect(card.when).toContain('Moved at a time that the log no longer tells, on state');
    expect(card.again).toBe('It cannot be made again: it was not kept.');
    expect(card.reason).toBe('oak is lost');
  });

  it('tells a plan that was kept close to what ran from one that was looked for', () => {
    const explained = { ...why.explained, again: { ...way, title: 'Weighed again' } };
    expect(whyCard({ ...why, explained }, nodes, at).again).toContain('moves the fewest weights');
  });

  it('tells of another answer, and of a way that is not possible', () => {
    const refusal = {
      status: 422,
      code: 'x',
      message: 'It does not fit.',
      near_matches: [],
      needed_bytes: null,
      missing_bytes: null,
      nodes: [],
    };
    const refused = { title: 'GPUs only', request, plan: null, refusal, remedy: null };
    const explained = {
      ...why.explained,
      is_identical: false,
      differences: ['other'],
      alternatives: [refused],
    };
    const card = whyCard({ ...why, explained, today: refused }, nodes, at);
    expect(card.again).toContain('another one now');
    expect(card.ways).toEqual([{ title: 'GPUs only', speed: null, words: 'It does not fit.' }]);
    expect(card.today?.speed).toBeNull();
  });
});
