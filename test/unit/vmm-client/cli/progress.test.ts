import { describe, expect, it } from 'vitest';
import { Progress, renderProgress } from '../../../../vmm-client/cli/progress.ts';

function output(isTTY: boolean) {
  const written: string[] = [];
  return { written, stream: { isTTY, columns: 80, write: (text: string) => written.push(text) } };
}

describe('Progress', () => {
  it('shows share, amount, rate and rest', () => {
    expect(renderProgress('read', 512 * 1024, 1024 * 1024, 1000, 200)).toBe(
      `read [${'#'.repeat(15)}${'-'.repeat(15)}]  50% of 1 MiB, 512 KiB/s, 1 s left`,
    );
  });

  it('shows time as time', () => {
    expect(renderProgress('randread', 1250, 5000, 1250, 200, 'time')).toMatch(/ 25% of 5 s, 4 s left$/);
  });

  it.each([20, 40, 80])('fits %d columns', (columns) => {
    expect(renderProgress('write', 1, 2, 1, columns).length).toBeLessThan(columns);
  });

  it('writes nothing where there is no terminal', () => {
    const { written, stream } = output(false);
    const progress = new Progress(stream, 'read', 100);
    progress.update(50);
    progress.clear();
    expect(written).toEqual([]);
  });

  it('redraws at a bounded rate, and leaves a clean line', () => {
    const { written, stream } = output(true);
    const progress = new Progress(stream, 'read', 100);
    for (let done = 0; done < 50; done++) progress.update(done);
    progress.clear();
    progress.clear();
    expect(written).toHaveLength(2);
    expect(written[1]).toBe('\r\x1b[K');
  });
});
