// One device on the page: what is not known is a dash, and what is wrong is said in words.
import { describe, expect, it } from 'vitest';
import stateAnswer from '../../../../tests/browser/fixtures/state.json';
import type { ClusterState, Device, DeviceState, Node } from '../types';
import { deviceRow, troubles, type DeviceRow } from './devices';
import { foldedDevices, nodeCards, type NodeDevice } from './nodes';

const state = stateAnswer as unknown as ClusterState;
const GIB = 1024 ** 3;
const oak = state.topology.nodes[0] as Node;
const [cpu, gpu] = oak.devices as [Device, Device];
const now = state.gpu_device_state[gpu.device_id] as DeviceState;

function row(changes: Partial<DeviceState>, of: Partial<Device> = {}): DeviceRow {
  return deviceRow({ ...gpu, ...of }, { ...now, ...changes });
}

function fact(device: DeviceRow, name: string): string | undefined {
  return device.facts.find((one) => one.name === name)?.words;
}

describe('what a device is', () => {
  it.each([
    [{ backend: 'cuda', memory_kind: 'vram' }, 'GPU', 'VRAM'],
    [{ backend: 'metal', memory_kind: 'unified' }, 'GPU', 'Unified memory'],
    [{ backend: 'simulated', memory_kind: 'vram', is_simulated: true }, 'GPU', 'VRAM'],
    [{ backend: 'simulated', memory_kind: 'ram', is_simulated: true }, 'CPU', 'RAM'],
    [{ backend: 'cpu', memory_kind: 'ram' }, 'CPU', 'RAM'],
  ] as const)('%o is a %s with %s', (changes, kind, label) => {
    const device = row({}, changes);
    expect(device.kind).toBe(kind);
    expect(device.memory.label).toBe(label);
    expect(device.isSimulated).toBe('is_simulated' in changes);
  });
});

describe('the name of what is simulated', () => {
  it('says it once: a badge does', () => {
    const name = 'NVIDIA GeForce RTX 4090 (simulated)';
    expect(row({}, { name, is_simulated: true }).name).toBe('NVIDIA GeForce RTX 4090');
    expect(row({}, { name }).name).toBe(name);
  });
});

describe('what is not known', () => {
  it('is a dash in every fact, and no number', () => {
    const device = deviceRow(gpu, undefined);
    expect(device).toMatchObject({
      utilizationPercent: null,
      temperatureC: null,
      temperatureLimitC: null,
      powerWatts: null,
      powerLimitWatts: null,
      health: 'unknown',
      healthCondition: { tone: 'plain', words: 'health –' },
      slowedCondition: null,
      governedCondition: null,
      hotCondition: null,
      worstTone: 'plain',
      memory: { usedBytes: null, totalBytes: 12 * GIB },
    });
    expect(device.facts.map(({ name, words }) => `${name} ${words}`)).toEqual([
      'Temperature –',
      'Power –',
      'Clock –',
      'Slowed –',
      'Known as cuda:0, NVIDIA',
      'Driver 550.54',
    ]);
  });

  it('is no zero: a zero is told as one', () => {
    const device = row({ power_watts: 0, thermal_temperature_c: 0, compute_utilization_percent: 0 });
    expect(device).toMatchObject({ powerWatts: 0, temperatureC: 0, utilizationPercent: 0 });
    expect(fact(device, 'Power')).toBe('0 W');
  });
});

describe('limits and clocks', () => {
  it('stand beside what is measured, where they are told', () => {
    const device = row({ power_limit_watts: 170, clock_mhz: 1777.4, clock_max_mhz: 2100 });
    expect(fact(device, 'Temperature')).toBe('71 °C, limit 83 °C');
    expect(fact(device, 'Power')).toBe('118 W, limit 170 W');
    expect(fact(device, 'Clock')).toBe('1777 MHz, limit 2100 MHz');
    expect(fact(row({}), 'Power')).toBe('118 W');
  });
});

describe('what holds a device back', () => {
  it.each([
    [['thermal'], true, 'warn', 'slowed by heat'],
    [['thermal', 'power'], true, 'warn', 'slowed by heat, its power limit'],
    [['power'], false, 'plain', 'slowed by its power limit'],
    [['power_brake'], null, 'warn', 'slowed by the power brake of its machine'],
    [null, true, 'warn', 'slowed by heat'],
    [['power'], true, 'warn', 'slowed by heat, its power limit'],
  ] as const)('%j, hot: %s', (reasons, isHot, tone, words) => {
    const changes = { throttle_reasons: reasons && [...reasons], is_thermal_throttling: isHot };
    expect(row(changes).slowedCondition).toEqual({ tone, words });
    expect(fact(row(changes), 'Slowed')).toBe(words.replace('slowed ', ''));
  });

  it('is told apart from what does not tell', () => {
    const silent = row({ throttle_reasons: null, is_thermal_throttling: null });
    expect([silent.slowedCondition, fact(silent, 'Slowed')]).toEqual([null, '–']);
    const free = row({ throttle_reasons: [], is_thermal_throttling: null });
    expect([free.slowedCondition, fact(free, 'Slowed')]).toEqual([null, 'no']);
    const cool = row({ throttle_reasons: null, is_thermal_throttling: false });
    expect([cool.slowedCondition, fact(cool, 'Slowed')]).toEqual([null, 'no']);
  });
});

describe('heat', () => {
  it.each([
    [78.4, 83, null],
    [78.6, 83, 'hot: 4 °C below its limit'],
    [83, 83.4, 'hot: at its limit'],
    [86, 83, 'hot: 3 °C above its limit'],
    [99, null, null],
    [null, 83, null],
  ])('%s of %s °C: %s', (temperature, limit, words) => {
    const device = row({ thermal_temperature_c: temperature, thermal_throttle_threshold_c: limit });
    expect(device.hotCondition).toEqual(words && { tone: 'warn', words });
    expect(device.worstTone).toBe(words ? 'warn' : 'plain');
  });

  it('is said once where it already slows the device', () => {
    const device = row({ thermal_temperature_c: 83, is_thermal_throttling: true });
    expect([device.hotCondition, device.slowedCondition?.words]).toEqual([null, 'slowed by heat']);
  });
});

describe('work that exo holds back', () => {
  const slowed = {
    state: 'slowed',
    reason: 'Slowed to 62% at 81 C: 84 C predicted within 60 s, 82 C allowed (limit 87 C).',
    work_fraction: 0.62,
    limit_c: 87,
    is_limit_assumed: false,
    predicted_temperature_c: 81.6,
    prediction_error_c: 0.62,
    sustained_fraction: 0.58,
    is_calibrated: true,
    power_source: 'measured',
  } as const;

  it('is said with its reason, on the device and on its node', () => {
    const device = row({ thermal: slowed });
    const words = 'slowed to 62 % at 81 °C: 84 °C predicted within 60 s, 82 °C allowed (limit 87 °C)';
    expect(device.governedCondition).toEqual({ tone: 'warn', words });
    expect(device.worstTone).toBe('warn');
    expect(troubles([device])).toEqual([{ tone: 'warn', words: '1 GPU slowed' }]);
    expect(fact(device, 'Heat')).toBe(`S${words.slice(1)}.`);
    expect(fact(device, 'Predicted')).toBe('82 °C in 30 s, ± 0.6 °C');
    expect(fact(device, 'Can hold')).toBe('58 % of full work for good');
  });

  it.each(['cool', 'warm', 'unknown'] as const)('is not what happens when it is %s', (state) => {
    const device = row({ thermal: { ...slowed, state, reason: 'Full work at 60 C.' } });
    expect([device.governedCondition, fact(device, 'Heat')]).toEqual([null, 'Full work at 60 °C.']);
  });

  it('may be for the battery, before anything is calibrated', () => {
    const reason = 'Paused: on battery with 9 %; work pauses below 10 %.';
    const unknown = { predicted_temperature_c: null, prediction_error_c: null, sustained_fraction: null };
    const device = row({ thermal: { ...slowed, ...unknown, state: 'paused', reason, work_fraction: 0 } });
    expect(device.governedCondition?.words).toBe('paused: on battery with 9 %; work pauses below 10 %');
    expect([fact(device, 'Predicted'), fact(device, 'Can hold')]).toEqual([undefined, undefined]);
  });

  it('is nothing new of a device that failed', () => {
    expect(row({ thermal: slowed, health: 'failed' }).governedCondition).toBeNull();
  });
});

describe('health', () => {
  it.each([
    ['healthy', null, 'good', 'healthy'],
    ['degraded', 'one wrong answer', 'warn', 'degraded: one wrong answer'],
    ['failed', 'it fell off the bus', 'bad', 'failed: it fell off the bus'],
    ['failed', null, 'bad', 'failed'],
  ] as const)('%s because of %s', (health, reason, tone, words) => {
    expect(row({ health, health_reason: reason }).healthCondition).toEqual({ tone, words });
  });

  it('is summed up for a node, worst first', () => {
    const failed = row({ health: 'failed' });
    const degraded = row({ health: 'degraded' });
    expect(troubles([degraded, row({}), failed, failed])).toEqual([
      { tone: 'bad', words: '2 GPUs failed' },
      { tone: 'warn', words: '1 GPU degraded' },
    ]);
    expect(troubles([failed, deviceRow(cpu, { ...now, health: 'failed' })])).toEqual([
      { tone: 'bad', words: '2 devices failed' },
    ]);
    expect(troubles([row({}), deviceRow(gpu, undefined), row({ throttle_reasons: ['power'] })])).toEqual([]);
  });

  it('counts each device once, by what is worst', () => {
    const hot = { thermal_temperature_c: 82 };
    const slowed = { is_thermal_throttling: true };
    const found = [row(hot), row(slowed), row({ ...slowed, health: 'failed' }), row({ ...hot, ...slowed })];
    expect(troubles(found).map(({ words }) => words)).toEqual(['1 GPU failed', '2 GPUs slowed', '1 GPU hot']);
    expect(found.map(({ worstTone }) => worstTone)).toEqual(['warn', 'warn', 'bad', 'warn']);
  });
});

describe('what few devices have', () => {
  it('is told where it is there', () => {
    const device = row(
      {
        faults: [{ kind: 'xid', code: 79, message: 'Xid 79: GPU has fallen off the bus', is_fatal: true }],
        ecc_corrected_count: 3,
        battery_percent: 41.4,
        is_plugged_in: true,
        is_memory_pressed: true,
        energy_joules: 5_234_000,
        processes: [
          { pid: 7, used_bytes: 2 * GIB },
          { pid: 9, used_bytes: null },
        ],
      },
      { support_level: 'monitoring' },
    );
    expect(fact(device, 'Faults')).toBe('Xid 79: GPU has fallen off the bus.');
    expect(fact(device, 'Memory errors')).toBe('3 corrected, – that could not be');
    expect(fact(device, 'Battery')).toBe('41 %, plugged in');
    expect(fact(device, 'Energy')).toBe('1.45 kWh since its driver counts');
    expect(fact(device, 'Memory pressure')).toBe('the system is short of memory');
    expect(fact(device, 'Held by')).toBe('process 7: 2 GiB, process 9: –');
    expect(fact(device, 'Use')).toBe('only watched: nothing can run on it');
    expect(fact(row({ battery_percent: 41.4 }), 'Battery')).toBe('41 %');
  });
});

describe("a node's memory", () => {
  function cardOf(devices: Device[], states: Partial<Record<string, Partial<DeviceState>>> = {}) {
    const node = { ...oak, devices };
    const told = Object.fromEntries(
      devices.map(({ device_id }) => [device_id, { ...now, device_id, ...states[device_id] }]),
    );
    const [card] = nodeCards({
      ...state,
      gpu_device_state: told,
      topology: { ...state.topology, nodes: [node] },
    });
    if (!card) throw new Error('there is no card');
    return card;
  }
  const labels = (devices: Device[]) => cardOf(devices).memory?.map((bar) => bar.label);
  const withBar = (devices: Device[]) => cardOf(devices).devices.map((device) => device.hasMemoryBar);
  const second = { ...gpu, device_id: 'second' };
  const shared: Device = { ...gpu, device_id: 'shared', memory_kind: 'unified' };

  it('is one pool where GPU and CPU share it, and named so', () => {
    expect(labels([cpu, shared])?.[0]).toBe('Unified memory');
    expect(labels([cpu, gpu])).toEqual(['RAM', 'VRAM']);
    // What is only played does not change what the machine has.
    const played: Device = { ...shared, is_simulated: true };
    expect(labels([cpu, played])?.[0]).toBe('RAM');
    expect(withBar([cpu, played])).toEqual([false, true]);
  });

  it('is told for each GPU where there are several', () => {
    expect(withBar([cpu, gpu])).toEqual([false, false]);
    expect(withBar([cpu, gpu, second])).toEqual([false, true, true]);
    expect(withBar([cpu, gpu, shared])).toEqual([false, false, false]);
  });

  it('comes before its devices, in the order of their numbers', () => {
    const numbered = [10, 2, 0].map((number) => ({
      ...gpu,
      device_id: `gpu ${number}`,
      local_alias: `cuda:${number}`,
    }));
    const aliases = cardOf([...numbered, cpu]).devices.map((device) => device.alias);
    expect(aliases).toEqual(['cpu:0', 'cuda:0', 'cuda:2', 'cuda:10']);
  });

  it('is the sum of those that tell, and says of how many', () => {
    const bars = cardOf([cpu, gpu, second], { second: { memory_used_bytes: null } }).memory;
    expect(bars?.[1]).toEqual({
      label: 'VRAM of the 1 of 2 GPUs that tell',
      usedBytes: now.memory_used_bytes,
      totalBytes: now.memory_total_bytes,
    });
    expect(cardOf([cpu, gpu, second]).memory?.[1]).toMatchObject({ label: 'VRAM', usedBytes: 4_724_464_026 });
  });

  it('is not known where none of them tells', () => {
    const bars = cardOf([cpu, gpu], { [gpu.device_id]: { memory_used_bytes: null } }).memory;
    expect(bars?.[1]).toEqual({ label: 'VRAM', usedBytes: null, totalBytes: 12 * GIB });
  });
});

describe('many devices', () => {
  const device = { ...row({}), hasMemoryBar: true };
  const many = Array.from({ length: 200 }, (_, place) => ({ ...device, id: `${place}` }));
  const ids = (devices: readonly NodeDevice[]) => foldedDevices(devices).map(({ id }) => id);

  it('are folded, but not those of a usual server', () => {
    expect(foldedDevices(many.slice(0, 18))).toHaveLength(18);
    expect(ids(many)).toEqual(['0', '1', '2', '3', '4', '5', '6', '7', '8']);
  });

  it('show those that want someone to look, worst before bad, in their places', () => {
    const some = many.map((one, place) =>
      place === 150
        ? { ...one, worstTone: 'bad' as const }
        : place > 190
          ? { ...one, worstTone: 'warn' as const }
          : one,
    );
    expect(ids(some)).toEqual(['150', ...[191, 192, 193, 194, 195, 196, 197, 198].map(String)]);
    expect(ids(some.slice(0, 193)).slice(-3)).toEqual(['150', '191', '192']);
  });
});
