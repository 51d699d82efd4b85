// What the page shows of one device: facts in words, and what is wrong with it.
import type { Device, DeviceState } from '../types';
import { bytes, celsius, megahertz, percent, UNKNOWN, watts } from './format';
import { sentence } from './problems';

export interface MemoryBar {
  label: string;
  /** Null where a device does not tell: then there is no bar that would look empty. */
  usedBytes: number | null;
  totalBytes: number;
}

/** How something stands, as colour and icon; the words always stand beside. */
export type Tone = 'good' | 'warn' | 'bad' | 'plain';

export interface Condition {
  tone: Tone;
  words: string;
}

export interface Fact {
  name: string;
  words: string;
}

export interface DeviceRow {
  id: string;
  /** What its node calls it, such as `cuda:0`. */
  alias: string;
  name: string;
  kind: 'CPU' | 'GPU';
  backend: string;
  isSimulated: boolean;
  memory: MemoryBar;
  utilizationPercent: number | null;
  temperatureC: number | null;
  temperatureLimitC: number | null;
  powerWatts: number | null;
  powerLimitWatts: number | null;
  health: DeviceState['health'] | 'unknown';
  healthCondition: Condition;
  /** Null while nothing holds it back, and where it does not tell. */
  slowedCondition: Condition | null;
  /** The rest, for those who look closer. */
  facts: Fact[];
}

type ThrottleReason = NonNullable<DeviceState['throttle_reasons']>[number];

const REASON_WORDS: Record<ThrottleReason, string> = {
  thermal: 'heat',
  power: 'its power limit',
  power_brake: 'the power brake of its machine',
  hardware: 'its hardware',
  software: 'a clock that was set',
  other: 'something else',
};

/** These are met by every busy GPU or were asked for; the others want someone to look. */
const ORDINARY_REASONS: readonly ThrottleReason[] = ['power', 'software', 'other'];

const HEALTH_TONES = { healthy: 'good', degraded: 'warn', failed: 'bad', unknown: 'plain' } as const;

const MEMORY_LABELS = { vram: 'VRAM', ram: 'RAM', unified: 'Unified memory' } as const;

export function isGpu(device: Device): boolean {
  return device.backend !== 'cpu' && device.memory_kind !== 'ram';
}

/** `state` is undefined until the first telemetry, and while the device's node is away. */
export function deviceRow(device: Device, state: DeviceState | undefined): DeviceRow {
  return {
    id: device.device_id,
    alias: device.local_alias,
    // A badge says it.
    name: device.is_simulated ? device.name.replace(/ \(simulated\)$/, '') : device.name,
    kind: isGpu(device) ? 'GPU' : 'CPU',
    backend: device.backend,
    isSimulated: device.is_simulated,
    memory: {
      label: MEMORY_LABELS[device.memory_kind],
      usedBytes: state?.memory_used_bytes ?? null,
      totalBytes: state?.memory_total_bytes ?? device.memory_total_bytes,
    },
    utilizationPercent: state?.compute_utilization_percent ?? null,
    temperatureC: state?.thermal_temperature_c ?? null,
    temperatureLimitC: state?.thermal_throttle_threshold_c ?? null,
    powerWatts: state?.power_watts ?? null,
    powerLimitWatts: state?.power_limit_watts ?? null,
    health: state?.health ?? 'unknown',
    healthCondition: healthCondition(state),
    slowedCondition: slowedCondition(state),
    facts: facts(device, state),
  };
}

function healthCondition(state: DeviceState | undefined): Condition {
  if (!state) return { tone: 'plain', words: `health ${UNKNOWN}` };
  const isWell = state.health === 'healthy' || !state.health_reason;
  return {
    tone: HEALTH_TONES[state.health],
    words: isWell ? state.health : `${state.health}: ${state.health_reason}`,
  };
}

function slowedCondition(state: DeviceState | undefined): Condition | null {
  const reasons = reasonsOf(state);
  if (!reasons?.length) return null;
  const isOrdinary = reasons.every((reason) => ORDINARY_REASONS.includes(reason));
  return { tone: isOrdinary ? 'plain' : 'warn', words: `slowed by ${reasonWords(reasons)}` };
}

/** Null where the device does not tell. */
function reasonsOf(state: DeviceState | undefined): ThrottleReason[] | null {
  const told = state?.throttle_reasons ?? null;
  const isHot = state?.is_thermal_throttling ?? null;
  if (told === null && isHot === null) return null;
  const reasons = told ?? [];
  return isHot && !reasons.includes('thermal') ? ['thermal', ...reasons] : reasons;
}

function reasonWords(reasons: ThrottleReason[]): string {
  return reasons.map((reason) => REASON_WORDS[reason]).join(', ');
}

/** What there is always, unknown as a dash; what few devices have only where it is told. */
function facts(device: Device, state: DeviceState | undefined): Fact[] {
  const reasons = reasonsOf(state);
  const rows: [string, string | null][] = [
    [
      'Temperature',
      withLimit(celsius(state?.thermal_temperature_c), state?.thermal_throttle_threshold_c, celsius),
    ],
    ['Power', withLimit(watts(state?.power_watts), state?.power_limit_watts, watts)],
    ['Clock', withLimit(megahertz(state?.clock_mhz), state?.clock_max_mhz, megahertz)],
    ['Slowed', reasons === null ? UNKNOWN : reasons.length === 0 ? 'no' : `by ${reasonWords(reasons)}`],
    ['Known as', `${device.local_alias}, ${device.vendor}`],
    ['Driver', device.driver_version ?? UNKNOWN],
    ['Use', device.support_level === 'monitoring' ? 'only watched: nothing can run on it' : null],
    ['Faults', state?.faults.map((fault) => sentence(fault.message)).join(' ') || null],
    ['Memory errors', memoryErrors(state)],
    ['Battery', battery(state)],
    ['Memory pressure', state?.is_memory_pressed ? 'the system is short of memory' : null],
    ['Held by', holders(state)],
  ];
  return rows.flatMap(([name, words]) => (words === null ? [] : [{ name, words }]));
}

/** `71 °C, limit 83 °C`; the limit is left out where it is not known. */
export function withLimit(
  value: string,
  limit: number | null | undefined,
  write: (limit: number) => string,
): string {
  return limit === null || limit === undefined ? value : `${value}, limit ${write(limit)}`;
}

function memoryErrors(state: DeviceState | undefined): string | null {
  const corrected = state?.ecc_corrected_count ?? null;
  const uncorrected = state?.ecc_uncorrected_count ?? null;
  if (corrected === null && uncorrected === null) return null;
  return `${corrected ?? UNKNOWN} corrected, ${uncorrected ?? UNKNOWN} not`;
}

function battery(state: DeviceState | undefined): string | null {
  const charge = state?.battery_percent ?? null;
  if (charge === null) return null;
  const plug = state?.is_plugged_in ?? null;
  return plug === null ? percent(charge) : `${percent(charge)}, ${plug ? 'plugged in' : 'not plugged in'}`;
}

function holders(state: DeviceState | undefined): string | null {
  const processes = state?.processes ?? [];
  if (processes.length === 0) return null;
  return processes.map((process) => `process ${process.pid}: ${bytes(process.used_bytes)}`).join(', ');
}

/** The GPUs of a node that are not well, in a few words: `1 GPU failed`. */
export function troubles(devices: readonly DeviceRow[]): Condition[] {
  return (['failed', 'degraded'] as const).flatMap((health) => {
    const found = devices.filter((device) => device.health === health);
    const [first] = found;
    if (!first) return [];
    const what = found.every((device) => device.kind === first.kind) ? first.kind : 'device';
    const words = `${found.length} ${what}${found.length > 1 ? 's' : ''} ${health}`;
    return [{ tone: HEALTH_TONES[health], words }];
  });
}
