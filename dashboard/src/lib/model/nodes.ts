// What the page shows of a node and its devices, out of the cluster's state.
import type { ClusterState, Device, Node, StagePhase } from '../types';
import { standing, type Standing } from './agreement';
import { deviceRow, memoryOf, troubles, type DeviceRow, type MemoryBar, type Condition } from './devices';
import { bytes, count } from './format';

export interface NodeCard {
  id: string;
  name: string;
  hue: number;
  platform: string;
  version: string;
  /** Where other nodes reach it. */
  clusterAddress: string;
  apiAddress: string;
  standing: Standing;
  isAnswering: boolean;
  isConnected: boolean;
  isWorker: boolean;
  leftReason: string | null;
  /** Names of other nodes on the same machine: their memory is the same memory. */
  sharesMachineWith: string[];
  /** Null until the first telemetry, and while the node is away: what it was is not what it is. */
  memory: MemoryBar[] | null;
  devices: NodeDevice[];
  /** How many of them failed, are degraded, slowed or hot. */
  troubles: Condition[];
  /** What is there besides and is not used. */
  refused: RefusedDevice[];
  /** What is placed here. */
  stages: PlacedStage[];
}

export interface RefusedDevice {
  name: string;
  /** `not used: its check failed`; it wants someone to look unless another driver has it, or it is still checked. */
  condition: Condition;
  nextStep: string;
}

export interface NodeDevice extends DeviceRow {
  /** The node's bars do not tell its memory apart, so it has a bar of its own. */
  hasMemoryBar: boolean;
}

export interface PlacedStage {
  instanceId: string;
  modelId: string;
  startLayer: number;
  /** Exclusive. */
  endLayer: number;
  phase: StagePhase;
}

/** What a plan's pictures need to know of a node; also of one that is not there. */
export interface PlanNode extends Pick<Node, 'node_id' | 'name' | 'is_connected'> {
  devices: readonly Pick<Device, 'device_id' | 'local_alias'>[];
}

export const HUE_COUNT = 6;

/** Each node's colour number, by its place in the cluster's list. */
export function hues(nodes: readonly Pick<Node, 'node_id'>[]): Map<string, number> {
  return new Map(nodes.map((node, place) => [node.node_id, place % HUE_COUNT]));
}

export function nodeCards(state: ClusterState): NodeCard[] {
  const { nodes } = state.topology;
  const hueOf = hues(nodes);
  const nameOf = nodeNames(nodes);
  return nodes.map((node) => ({
    id: node.node_id,
    name: nameOf.get(node.node_id) ?? node.node_id,
    hue: hueOf.get(node.node_id) ?? 0,
    platform: node.platform,
    version: node.exo_version,
    clusterAddress: address(node.cluster_address),
    apiAddress: address(node.api_address),
    standing: standing(state, node.node_id),
    isAnswering: node.node_id === state.node_id,
    isConnected: node.is_connected,
    isWorker: node.is_worker,
    leftReason: node.left_reason,
    sharesMachineWith: nodes
      .filter((other) => other.host_id === node.host_id && other.node_id !== node.node_id)
      .map((other) => nameOf.get(other.node_id) ?? other.node_id),
    memory: node.is_connected ? memoryBars(state, node) : null,
    ...devicesOf(state, node),
    refused: refusedDevices(node),
    stages: placedStages(state, node.node_id),
  }));
}

function devicesOf(state: ClusterState, node: Node): Pick<NodeCard, 'devices' | 'troubles'> {
  const devices = node.devices.map((device) => ({
    ...deviceRow(device, node.is_connected ? state.gpu_device_state[device.device_id] : undefined),
    hasMemoryBar: hasMemoryBar(node, device),
  }));
  // The cluster lists them by their ids: people count.
  devices.sort((one, other) => one.alias.localeCompare(other.alias, 'en', { numeric: true }));
  return { devices, troubles: troubles(devices) };
}

/** Devices that are there and are not used, as the node told last; of one that is away nobody knows. */
function refusedDevices(node: Node): RefusedDevice[] {
  if (!node.is_connected) return [];
  return node.refused_devices.map((refused) => ({
    name: [refused.local_alias, refused.name].filter(Boolean).join(' '),
    condition: {
      tone: refused.kind === 'wrong' ? 'bad' : refused.kind === 'duplicate' ? 'plain' : 'warn',
      words: `not used: ${refused.reason}`,
    },
    nextStep: refused.next_step,
  }));
}

/** Where a device has memory of its own, and the node's sum is not just that. */
function hasMemoryBar(node: Node, device: Device): boolean {
  if (device.memory_kind === 'unified') return device.is_simulated;
  return (
    device.memory_kind === 'vram' && node.devices.filter((other) => other.memory_kind === 'vram').length > 1
  );
}

function placedStages(state: ClusterState, nodeId: string): PlacedStage[] {
  return Object.values(state.instances).flatMap((instance) =>
    instance.plan.stages
      .filter((planned) => planned.node_id === nodeId)
      .map((planned) => ({
        instanceId: instance.instance_id,
        modelId: instance.model_id,
        startLayer: planned.start_layer,
        endLayer: planned.end_layer,
        phase: instance.stages.find((stage) => stage.rank === planned.rank)?.phase ?? 'pending',
      })),
  );
}

/** Names for people: nodes of equal name (three on one machine) are told apart by the start of their id. */
export function nodeNames(nodes: readonly Pick<Node, 'node_id' | 'name'>[]): Map<string, string> {
  const times = new Map<string, number>();
  for (const node of nodes) times.set(node.name, (times.get(node.name) ?? 0) + 1);
  return new Map(
    nodes.map((node) => [
      node.node_id,
      (times.get(node.name) ?? 0) > 1 ? `${node.name} ${node.node_id.slice(0, 4)}` : node.name,
    ]),
  );
}

function address({ host, port }: Node['api_address']): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

/** More devices than this are folded: a server's two processors and sixteen GPUs are not. */
const UNFOLDED_COUNT = 18;
const FOLDED_COUNT = 9;

/** The devices of a card that is folded, in their order: of many, those that want someone to look before all others. */
export function foldedDevices(devices: readonly NodeDevice[]): NodeDevice[] {
  if (devices.length <= UNFOLDED_COUNT) return [...devices];
  const rank = { bad: 0, warn: 1, plain: 2 };
  const first = devices.toSorted((one, other) => rank[one.worstTone] - rank[other.worstTone]);
  const shown = new Set(first.slice(0, FOLDED_COUNT));
  return devices.filter((device) => shown.has(device));
}

/** RAM, and VRAM apart from it; memory that GPU and CPU share is one pool, and named so. */
function memoryBars(state: ClusterState, node: Node): MemoryBar[] | null {
  const memory = node.node_profile?.memory;
  if (!memory) return null;
  const isShared = node.devices.some((device) => device.memory_kind === 'unified' && !device.is_simulated);
  const bars: MemoryBar[] = [
    {
      label: isShared ? 'Unified memory' : 'RAM',
      usedBytes: memory.ram_total - memory.ram_available,
      totalBytes: memory.ram_total,
    },
  ];
  if (memory.gpu_vram_total > 0) bars.push(vramBar(state, node, memory));
  return bars;
}

/** The node's own sum counts a device that does not tell as empty: then only those that tell are summed, and it says so. */
function vramBar(
  state: ClusterState,
  node: Node,
  memory: NonNullable<Node['node_profile']>['memory'],
): MemoryBar {
  const holders = node.devices.filter((device) => device.memory_kind === 'vram');
  const told = holders.flatMap((device) => {
    const { usedBytes, totalBytes } = memoryOf(device, state.gpu_device_state[device.device_id]);
    return usedBytes === null ? [] : [{ usedBytes, totalBytes }];
  });
  if (told.length === holders.length) {
    return { label: 'VRAM', usedBytes: memory.gpu_vram_used, totalBytes: memory.gpu_vram_total };
  }
  if (told.length === 0) return { label: 'VRAM', usedBytes: null, totalBytes: memory.gpu_vram_total };
  return {
    label: `VRAM of the ${told.length} of ${holders.length} GPUs that tell`,
    usedBytes: told.reduce((sum, one) => sum + one.usedBytes, 0),
    totalBytes: told.reduce((sum, one) => sum + one.totalBytes, 0),
  };
}

/** The machines together, in a line. */
export function topologyNote(state: ClusterState): string {
  const { device_count, memory_total_bytes, mean_latency_ms } = state.topology.metrics;
  const parts = [count(device_count, 'device'), `${bytes(memory_total_bytes)} of device memory`];
  if (mean_latency_ms !== null) parts.push(`${Number(mean_latency_ms.toPrecision(2))} ms between nodes`);
  return parts.join(' · ');
}
