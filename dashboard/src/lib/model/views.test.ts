// The answers that the browser tests use, as the page's values.
import { describe, expect, it } from 'vitest';
import instanceAnswer from '../../../../tests/browser/fixtures/instance.json';
import modelsAnswer from '../../../../tests/browser/fixtures/models.json';
import stateAnswer from '../../../../tests/browser/fixtures/state.json';
import type { ClusterState, Instance, Model, Stage } from '../types';
import { bestInstance, instanceCards, layerRange, planSummary, stageBands } from './instances';
import { chatModels, modelRow, readiness, waitingFor } from './models';
import { nodeCards, nodeNames, topologyNote } from './nodes';

const state = stateAnswer as unknown as ClusterState;
const instance = instanceAnswer as unknown as Instance;
const models = modelsAnswer.models as unknown as Model[];
const [oak, pine, reed] = state.topology.nodes as [
  (typeof state.topology.nodes)[0],
  ...typeof state.topology.nodes,
];

function withInstance(changes: Partial<Instance>): ClusterState {
  return { ...state, instances: { [instance.instance_id]: { ...instance, ...changes } } };
}

function phases(...entries: [Stage['phase'], number][]): Stage[] {
  return instance.stages.map((stage, rank) => {
    const [phase, loaded] = entries[rank] ?? ['pending', 0];
    return { ...stage, phase, loaded_layers: loaded };
  });
}

describe('nodes', () => {
  it('keeps VRAM apart from RAM, and shows none where there is none', () => {
    const [first, second, third] = nodeCards(state);
    expect(first?.memory?.map((bar) => bar.label)).toEqual(['RAM', 'VRAM']);
    expect(second?.memory?.map((bar) => bar.label)).toEqual(['RAM']);
    expect(third?.memory).toBeNull();
  });

  it('knows master, answering node and unknown telemetry', () => {
    const cards = nodeCards(state);
    expect(cards.map((card) => card.standing)).toEqual(['master', 'votes', 'votes']);
    expect(cards.map((card) => card.isAnswering)).toEqual([false, true, false]);
    expect(cards[2]?.devices[0]).toMatchObject({ kind: 'GPU', utilizationPercent: null, temperatureC: null });
  });

  it('shows nothing of a node that is away, because what it was is not what it is', () => {
    const nodes = state.topology.nodes.map((node) => ({ ...node, is_connected: false }));
    const [first] = nodeCards({ ...state, topology: { ...state.topology, nodes } });
    expect(first?.memory).toBeNull();
    expect(first?.devices.map((device) => device.utilizationPercent)).toEqual([null, null]);
  });

  it('shows what is there and not used apart from the devices, and nothing of a node that is away', () => {
    const refused = [
      {
        backend: 'cuda',
        kind: 'wrong',
        name: 'RTX 4090',
        local_alias: 'cuda:1',
        reason: 'its check failed',
        next_step: 'restart',
      },
      {
        backend: 'rocm',
        kind: 'hanging',
        name: 'AMD GPUs',
        local_alias: null,
        reason: 'no answer',
        next_step: '',
      },
      {
        backend: 'directml',
        kind: 'duplicate',
        name: 'RTX 4090',
        local_alias: 'directml:0',
        reason: 'cuda has it',
        next_step: '',
      },
    ] as (typeof oak)['refused_devices'];
    const withRefused = (isConnected: boolean) =>
      nodeCards({
        ...state,
        topology: {
          ...state.topology,
          nodes: [{ ...oak, refused_devices: refused, is_connected: isConnected }],
        },
      })[0];
    expect(withRefused(true)?.refused).toEqual([
      {
        name: 'cuda:1 RTX 4090',
        condition: { tone: 'bad', words: 'not used: its check failed' },
        nextStep: 'restart',
      },
      { name: 'AMD GPUs', condition: { tone: 'warn', words: 'not used: no answer' }, nextStep: '' },
      {
        name: 'directml:0 RTX 4090',
        condition: { tone: 'plain', words: 'not used: cuda has it' },
        nextStep: '',
      },
    ]);
    expect(withRefused(true)?.devices.map((device) => device.alias)).toEqual(
      nodeCards(state)[0]?.devices.map((device) => device.alias),
    );
    expect(withRefused(false)?.refused).toEqual([]);
  });

  it('tells nodes of equal name apart, and only those', () => {
    const nodes = [oak, { ...pine, name: 'oak' }, reed] as typeof state.topology.nodes;
    expect([...nodeNames(nodes).values()]).toEqual(['oak 1f0c', 'oak 5b7e', 'reed']);
  });

  it('sums the cluster up, leaving out what was not measured', () => {
    expect(topologyNote(state)).toBe('4 devices · 100 GiB of device memory · 0.4 ms between nodes');
    const metrics = { ...state.topology.metrics, mean_latency_ms: null };
    expect(topologyNote({ ...state, topology: { ...state.topology, metrics } })).not.toContain('ms');
  });
});

describe('instances', () => {
  it('fills each stage as far as it is loaded', () => {
    const stages = phases(['loading', 1], ['loaded', 0], ['starting', 0]);
    const bands = stageBands(instance.plan, state.topology.nodes, stages);
    expect(bands.map((band) => band.loaded)).toEqual([1 / 3, 1, 0]);
    expect(bands.map((band) => band.nodeName)).toEqual(['oak', 'reed', 'pine']);
    expect(bands.map(layerRange)).toEqual(['layers 0–2', 'layers 3–4', 'layer 5']);
  });

  it('finds stages by rank, not by their place in the list', () => {
    const stages = phases(['ready', 3], ['failed', 0], ['loading', 0]).reverse();
    const bands = stageBands(instance.plan, state.topology.nodes, stages);
    expect(bands.map((band) => band.phase)).toEqual(['ready', 'failed', 'loading']);
  });

  it('says how fast it was seen to be, where it was', () => {
    expect(instanceCards(withInstance({}))[0]?.summary).not.toContain('tokens/s');
    const [card] = instanceCards(withInstance({ measured_tokens_per_s: 1234.5 }));
    expect(card?.summary).toContain('one request alone was seen to get 1,235 tokens/s');
  });

  it('says why it moved, where it did', () => {
    expect(instanceCards(withInstance({}))[0]?.moved).toBeNull();
    const [card] = instanceCards(withInstance({ moved_reason: 'cuda:1 of oak failed' }));
    expect(card?.moved).toEqual({ tone: 'plain', words: 'moved: cuda:1 of oak failed' });
  });

  it('says how it is, with numbers while it loads', () => {
    const [card] = instanceCards(withInstance({ status: 'loading', loaded_layers: 4 }));
    expect(card?.statusText).toBe('loading 4 of 6 layers');
    expect(card?.summary).toBe('pipeline over 3 nodes · mlx · 1,024 tokens of context');
    expect(planSummary({ ...instance.plan, stages: instance.plan.stages.slice(0, 1) })).toMatch(
      /^on one node/,
    );
  });

  it('prefers the instance that can answer', () => {
    const instances = {
      a: { ...instance, status: 'failed' as const },
      b: { ...instance, status: 'ready' as const },
      c: { ...instance, status: 'loading' as const },
    };
    expect(bestInstance({ ...state, instances }, 'exo-tiny')?.status).toBe('ready');
    expect(bestInstance({ ...state, instances }, 'other')).toBeNull();
    expect(bestInstance(null, 'exo-tiny')).toBeNull();
  });
});

describe('models', () => {
  it('lists facts, and only nodes that can load it', () => {
    expect(modelRow(models[0] as Model).facts).toBe(
      '510 KiB · 6 layers · bfloat16 · qwen3 · on oak, pine, reed',
    );
    expect(modelRow(models[1] as Model).facts).toBe('12.6 GiB · 32 layers · float16 · llama');
  });

  it('offers a chat what can be loaded, ready ones first', () => {
    expect(chatModels(models, state).map((model) => model.model_id)).toEqual([
      'exo-tiny',
      'org/large-8b-4bit',
    ]);
    const large = withInstance({ model_id: 'org/large-8b-4bit', status: 'ready' });
    expect(chatModels(models, large).map((model) => model.model_id)).toEqual([
      'org/large-8b-4bit',
      'exo-tiny',
    ]);
  });

  it('says what a message waits for', () => {
    expect(waitingFor(state, 'exo-tiny')).toBe('Placing exo-tiny…');
    expect(readiness(withInstance({ status: 'loading', loaded_layers: 2 }), 'exo-tiny')).toBe(
      'loading 2 of 6 layers',
    );
    expect(waitingFor(withInstance({ status: 'pending' }), 'exo-tiny')).toBe(
      'Waiting for exo-tiny: starting…',
    );
    expect(waitingFor(withInstance({ status: 'ready' }), 'exo-tiny')).toContain('first token');
  });
});
