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
  /** Null while exo itself does not hold its work back, for heat or for the battery. */
  governedCondition: Condition | null;
  /** Null while it is cool, where it does not tell, and once heat slows it: then that is said. */
  hotCondition: Condition | null;
  /** Of all these; what is well or ordinary is `plain`. */
  worstTone: 'bad' | 'warn' | 'plain';
  /** The rest, for those who look closer. */
  facts: Fact[];
}

type Thermal = NonNullable<DeviceState['thermal']>;
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

/** Closer to its limit a device is called hot; exo lets none of its work bring it there. */
const HOT_MARGIN_C = 5;

const HEALTH_TONES = { healthy: 'good', degraded: 'warn', failed: 'bad', unknown: 'plain' } as const;

const MEMORY_LABELS = { vram: 'VRAM', ram: 'RAM', unified: 'Unified memory' } as const;

export function isGpu(device: Device): boolean {
  return device.backend !== 'cpu' && device.memory_kind !== 'ram';
}

/** `state` is undefined until the first telemetry, and while the device's node is away. */
export function deviceRow(device: Device, state: DeviceState | undefined): DeviceRow {
  const conditions = {
    healthCondition: healthCondition(state),
    slowedCondition: slowedCondition(state),
    governedCondition: governedCondition(state),
    hotCondition: hotCondition(state),
  };
  return {
    id: device.device_id,
    alias: device.local_alias,
    // A badge says it.
    name: device.is_simulated ? device.name.replace(/ \(simulated\)$/, '') : device.name,
    kind: isGpu(device) ? 'GPU' : 'CPU',
    backend: device.backend,
    isSimulated: device.is_simulated,
    memory: memoryOf(device, state),
    utilizationPercent: state?.compute_utilization_percent ?? null,
    temperatureC: state?.thermal_temperature_c ?? null,
    temperatureLimitC: state?.thermal_throttle_threshold_c ?? null,
    powerWatts: state?.power_watts ?? null,
    powerLimitWatts: state?.power_limit_watts ?? null,
    health: state?.health ?? 'unknown',
    ...conditions,
    worstTone: worstTone(Object.values(conditions)),
    facts: facts(device, state),
  };
}

export function memoryOf(device: Device, state: DeviceState | undefined): MemoryBar {
  return {
    label: MEMORY_LABELS[device.memory_kind],
    usedBytes: state?.memory_used_bytes ?? null,
    totalBytes: state?.memory_total_bytes ?? device.memory_total_bytes,
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

/** Its reason has the numbers: how much it still works, and the temperature that is predicted. */
function governedCondition(state: DeviceState | undefined): Condition | null {
  const thermal = state?.thermal;
  // One that failed does no work anyway.
  if (!thermal || state.health === 'failed' || !isHeldBack(thermal)) return null;
  return { tone: 'warn', words: withUnits(clause(thermal.reason)) };
}

function isHeldBack({ state }: Thermal): boolean {
  return state === 'slowed' || state === 'paused';
}

/** `Slowed to 62% at 81 C.` as everything else on the page is written. */
function withUnits(words: string): string {
  return words.replace(/(\d)%/g, '$1 %').replace(/(\d) C\b/g, '$1 °C');
}

/** A sentence as a part of another one. */
function clause(words: string): string {
  return words.charAt(0).toLowerCase() + words.slice(1).replace(/\.$/, '');
}

function hotCondition(state: DeviceState | undefined): Condition | null {
  const temperature = state?.thermal_temperature_c ?? null;
  const limit = state?.thermal_throttle_threshold_c ?? null;
  if (temperature === null || limit === null || reasonsOf(state)?.includes('thermal')) return null;
  const marginC = Math.round(limit) - Math.round(temperature);
  if (marginC >= HOT_MARGIN_C) return null;
  const where = marginC > 0 ? `${marginC} °C below` : marginC === 0 ? 'at' : `${-marginC} °C above`;
  return { tone: 'warn', words: `hot: ${where} its limit` };
}

function worstTone(conditions: (Condition | null)[]): DeviceRow['worstTone'] {
  const has = (tone: Tone) => conditions.some((condition) => condition?.tone === tone);
  return has('bad') ? 'bad' : has('warn') ? 'warn' : 'plain';
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
    ['Heat', state?.thermal ? withUnits(sentence(state.thermal.reason)) : null],
    ['Predicted', prediction(state?.thermal ?? null)],
    ['Can hold', holdable(state?.thermal ?? null)],
    ['Power', withLimit(watts(state?.power_watts), state?.power_limit_watts, watts)],
    ['Clock', withLimit(megahertz(state?.clock_mhz), state?.clock_max_mhz, megahertz)],
    ['Slowed', reasons === null ? UNKNOWN : reasons.length === 0 ? 'no' : `by ${reasonWords(reasons)}`],
    ['Known as', `${device.local_alias}, ${device.vendor}`],
    ['Driver', device.driver_version ?? UNKNOWN],
    ['Use', device.support_level === 'monitoring' ? 'only watched: nothing can run on it' : null],
    ['Faults', state?.faults.map((fault) => sentence(fault.message)).join(' ') || null],
    ['Memory errors', memoryErrors(state)],
    ['Battery', battery(state)],
    ['Energy', energy(state)],
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

/** `84 °C in 30 s, ± 0.6 °C`. */
function prediction(thermal: Thermal | null): string | null {
  const predicted = thermal?.predicted_temperature_c ?? null;
  if (predicted === null) return null;
  const error = thermal?.prediction_error_c ?? null;
  return `${celsius(predicted)} in 30 s${error === null ? '' : `, ± ${error.toFixed(1)} °C`}`;
}

function holdable(thermal: Thermal | null): string | null {
  const fraction = thermal?.sustained_fraction ?? null;
  if (fraction === null) return null;
  return fraction >= 1 ? 'full work for good' : `${percent(fraction * 100)} of full work for good`;
}

function memoryErrors(state: DeviceState | undefined): string | null {
  const corrected = state?.ecc_corrected_count ?? null;
  const uncorrected = state?.ecc_uncorrected_count ?? null;
  if (corrected === null && uncorrected === null) return null;
  return `${corrected ?? UNKNOWN} corrected, ${uncorrected ?? UNKNOWN} that could not be`;
}

function energy(state: DeviceState | undefined): string | null {
  const joules = state?.energy_joules ?? null;
  if (joules === null) return null;
  return `${(joules / 3.6e6).toLocaleString('en', { maximumSignificantDigits: 3 })} kWh since its driver counts`;
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

/** The devices of a node that want someone to look, in a few words: `1 GPU failed`. Each is counted once. */
export function troubles(devices: readonly DeviceRow[]): Condition[] {
  const counted = new Set<DeviceRow>();
  return TROUBLES.flatMap(({ tone, word, is }) => {
    const found = devices.filter((device) => !counted.has(device) && is(device));
    for (const device of found) counted.add(device);
    const [first] = found;
    if (!first) return [];
    const what = found.every((device) => device.kind === first.kind) ? first.kind : 'device';
    return [{ tone, words: `${found.length} ${what}${found.length > 1 ? 's' : ''} ${word}` }];
  });
}

/** Worst first. */
const TROUBLES: readonly { tone: Tone; word: string; is: (device: DeviceRow) => boolean }[] = [
  { tone: 'bad', word: 'failed', is: (device) => device.health === 'failed' },
  { tone: 'warn', word: 'degraded', is: (device) => device.health === 'degraded' },
  {
    tone: 'warn',
    word: 'slowed',
    is: (device) => device.slowedCondition?.tone === 'warn' || device.governedCondition !== null,
  },
  { tone: 'warn', word: 'hot', is: (device) => device.hotCondition !== null },
];
