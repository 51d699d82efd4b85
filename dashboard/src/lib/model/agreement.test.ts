import { describe, expect, it } from 'vitest';
import stateAnswer from '../../../../tests/browser/fixtures/state.json';
import type { ClusterState } from '../types';
import { agreement, standing, standingMeaning } from './agreement';
import { nodeNames } from './nodes';

const recorded = stateAnswer as unknown as ClusterState;
const [oak, pine, reed] = recorded.topology.nodes.map((node) => node.node_id) as [string, string, string];

function cluster(voters: string[], replicas: string[] = [], master: string | null = oak): ClusterState {
  return { ...recorded, master_node_id: master, voters: { voters, replicas } };
}

const told = (state: ClusterState) => agreement(state, nodeNames(state.topology.nodes));

describe('standing', () => {
  it('tells master, voter, copy and follower apart', () => {
    const two = cluster([oak], [pine]);
    expect([oak, pine, reed].map((id) => standing(two, id))).toEqual(['master', 'copy', null]);
    const three = cluster([oak, pine, reed], [], reed);
    expect([oak, pine, reed].map((id) => standing(three, id))).toEqual(['votes', 'votes', 'master']);
  });

  it('shows no master where none is reached, and who votes all the same', () => {
    expect(standing(cluster([oak, pine, reed], [], null), oak)).toBe('votes');
  });

  it('explains each of them differently', () => {
    const meanings = (['master', 'votes', 'copy', null] as const).map(standingMeaning);
    expect(new Set(meanings).size).toBe(4);
  });
});

describe('agreement', () => {
  it('names the majority while there is a master', () => {
    expect(told(cluster([oak, pine, reed]))).toEqual({
      isLed: true,
      words: '2 of 3 voters decide: oak, pine, reed',
      nextStep: null,
      lastResort: null,
    });
  });

  it('names who is needed for a majority without one', () => {
    const { isLed, words, nextStep, lastResort } = told(cluster([oak, pine, reed], [], null));
    expect(isLed).toBe(false);
    expect(words).toBe('No master: 2 of 3 voters have to reach each other: oak, pine, reed.');
    expect(nextStep).toBe('Start those that are away.');
    expect(lastResort).toBe('exo node forget NODE…');
  });

  it.each([
    [2, 2],
    [3, 2],
    [4, 3],
    [5, 3],
    [6, 4],
  ])('needs more than half: of %i voters %i', (count, needed) => {
    const voters = Array.from({ length: count }, (_, place) => `voter-${place}`);
    expect(told(cluster(voters, [], null)).words).toContain(`${needed} of ${count} voters have`);
  });

  it('of two nodes lets one decide, and says who holds a copy', () => {
    expect(told(cluster([oak], [pine])).words).toBe('oak decides; pine holds a copy in sync');
    expect(told(cluster([oak])).words).toBe('oak decides');
    const without = told(cluster([oak], [pine], null));
    expect(without.words).toBe('No master: decisions wait for oak.');
    expect(without.lastResort).toBe(`exo node forget ${oak}`);
  });

  it('does not know who decides before a master was reached', () => {
    expect(told(cluster([], [], null)).words).toContain('Who decides is not known here');
  });

  it('says nothing of voters where decisions are kept elsewhere', () => {
    expect(told(cluster([]))).toMatchObject({ isLed: true, words: '' });
  });

  it('names a voter that is no member by its id', () => {
    expect(told(cluster(['0123456789abcdef'], [], '0123456789abcdef')).words).toBe('01234567 decides');
  });
});
