// Short names for the generated types; openapi.ts comes from `npm run types` and is never written by hand.
import type { components } from './openapi';

type Schemas = components['schemas'];

export type ClusterState = Schemas['ClusterStateView'];
export type Node = Schemas['NodeView'];
export type NodeList = Schemas['NodeList'];
export type Member = Schemas['MemberView'];
export type Wish = Schemas['WishView'];
export type Decided = Schemas['Decided'];
export type Device = Schemas['DeviceView'];
export type DeviceState = Schemas['DeviceStateView'];
export type Instance = Schemas['InstanceView'];
export type InstanceWish = Schemas['InstanceWish'];
export type InstancePlaced = Schemas['InstancePlaced'];
export type InstanceDeleted = Schemas['InstanceDeleted'];
export type Plan = Schemas['PlanView'];
export type Stage = Schemas['StageView'];
export type StagePhase = Stage['phase'];
export type Model = Schemas['ModelView'];
export type ModelList = Schemas['ModelList'];
export type Preview = Schemas['PreviewView'];
export type PreviewList = Schemas['PreviewList'];
export type Remedy = Schemas['RemedyView'];
export type PlanWish = Schemas['PlanWish'];
export type Planned = Schemas['PlannedView'];
export type WishedMachine = Schemas['WishedMachineWish'];
export type KnownDevice = Schemas['KnownDeviceView'];
export type KnownDeviceList = Schemas['KnownDeviceList'];
export type Why = Schemas['WhyView'];
export type Refusal = Schemas['RefusalView'];
export type Problem = Schemas['Problem'];
export type OpenAIError = Schemas['OpenAIError'];
export type ChatWish = Schemas['ChatCompletionWish'];
export type ChatChunk = Schemas['ChatCompletionChunk'];
