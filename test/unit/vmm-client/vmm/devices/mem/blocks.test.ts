import { describe, expect, it } from 'vitest';
import { Blocks } from '../../../../../../vmm-client/vmm/devices/mem/blocks.ts';

describe('Blocks', () => {
  it('counts what is plugged, altogether and in each piece', () => {
    const blocks = new Blocks(100, 40);

    blocks.set({ first: 30, count: 30 }, true);
    blocks.set({ first: 99, count: 1 }, true);
    blocks.set({ first: 35, count: 2 }, false);

    expect(blocks.plugged).toBe(29);
    expect([0, 1, 2, 3].map((piece) => blocks.pluggedIn(piece))).toEqual([8, 20, 1, 0]);
    expect(blocks.pluggedOf({ first: 30, count: 10 })).toBe(8);
  });

  it('finds runs in a part', () => {
    const blocks = new Blocks(64, 64);
    blocks.set({ first: 3, count: 5 }, true);
    blocks.set({ first: 10, count: 54 }, true);

    expect([...blocks.runs({ first: 0, count: 64 }, true)]).toEqual([
      { first: 3, count: 5 },
      { first: 10, count: 54 },
    ]);
    expect([...blocks.runs({ first: 5, count: 4 }, false)]).toEqual([{ first: 8, count: 1 }]);
    expect([...blocks.runs({ first: 20, count: 8 }, false)]).toEqual([]);
  });

  it('is the same again from its bits', () => {
    const blocks = new Blocks(20, 8);
    blocks.set({ first: 1, count: 2 }, true);
    blocks.set({ first: 17, count: 3 }, true);

    expect([...blocks.bits()]).toEqual([0x06, 0x00, 0x0e]);
    const again = new Blocks(20, 8, blocks.bits());
    expect(again.plugged).toBe(5);
    expect([0, 1, 2].map((piece) => again.pluggedIn(piece))).toEqual([2, 0, 3]);

    again.clear();
    expect(again.plugged).toBe(0);
    expect([...again.runs({ first: 0, count: 20 }, true)]).toEqual([]);
    expect(blocks.plugged).toBe(5);
  });
});
