// The devices of the whole cluster that want someone to look, and why.
import type { DeviceRow, Tone } from './devices';
import type { NodeCard } from './nodes';

export interface Concern {
  nodeId: string;
  deviceId: string;
  /** Where: `forge cuda:5`. */
  place: string;
  tone: Tone;
  /** `failed: GPU has fallen off the bus`; several that are wrong with one device stand together. */
  words: string;
  health: DeviceRow['health'];
}

/** The failed before the rest, each in the order of nodes and devices. Warmth alone is told at the device: it comes and goes. */
export function concerns(nodes: readonly NodeCard[]): Concern[] {
  const found = nodes.flatMap((node) =>
    node.devices.flatMap((device): Concern[] => {
      const conditions = [device.healthCondition, device.slowedCondition, device.governedCondition].filter(
        (condition) => condition !== null && (condition.tone === 'bad' || condition.tone === 'warn'),
      );
      const [first] = conditions;
      if (!first) return [];
      return [
        {
          nodeId: node.id,
          deviceId: device.id,
          place: `${node.name} ${device.alias}`,
          tone: first.tone,
          words: conditions.map((condition) => condition?.words).join('; '),
          health: device.health,
        },
      ];
    }),
  );
  return found.toSorted((one, other) => Number(other.tone === 'bad') - Number(one.tone === 'bad'));
}

const SAID_COUNT = 3;

/** What to say aloud when these concerns follow those: devices whose health got worse; empty: nothing. */
export function newsOf(before: readonly Concern[], now: readonly Concern[]): string {
  const known = new Set(before.map(({ deviceId, health }) => `${deviceId} ${health}`));
  const news = now.filter(
    ({ deviceId, health }) =>
      (health === 'failed' || health === 'degraded') && !known.has(`${deviceId} ${health}`),
  );
  if (news.length === 0) return '';
  const said = news.slice(0, SAID_COUNT).map(({ place, words }) => `${place} ${words}`);
  const more = news.length - said.length;
  return `${said.join('. ')}${more > 0 ? `, and ${more} more` : ''}.`;
}
