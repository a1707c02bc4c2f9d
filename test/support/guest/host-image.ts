/**
 * A file system image in which parts of this machine lie under the paths they have here: Node, this checkout's build
 * with its npm packages, and what else a test names. A guest that mounts it and changes its root to it can run them.
 */

import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { peerPath, projectDirectory } from '../peers.ts';
import { librariesOf } from './initramfs.ts';

export interface HostImageContents {
  /** Programs, which take their libraries along. Absolute paths, also below. */
  readonly programs?: readonly string[];
  /** Files and directories. */
  readonly files?: readonly string[];
}

const SIZE = '1G';
const MOUNT_POINTS = ['/proc', '/sys', '/dev', '/tmp', '/run', '/mnt', '/root'];

/** What the daemons and `ringside` need to run. */
const ringsideFiles = (): string[] => {
  const lock = JSON.parse(readFileSync(join(projectDirectory, 'package-lock.json'), 'utf8')) as {
    packages: Record<string, { readonly dev?: boolean }>;
  };
  const packages = Object.keys(lock.packages).filter((path) => path !== '' && lock.packages[path]?.dev !== true);
  // Packages for other platforms are listed and not installed.
  const installed = ['dist', 'package.json', ...packages].map((path) => join(projectDirectory, path));
  return installed.filter((path) => existsSync(path));
};

/** Makes an ext4 image at `path`, sparse. Its shell and small commands are busybox. */
export const makeHostImage = (path: string, contents: HostImageContents): void => {
  const programs = [process.execPath, ...(contents.programs ?? [])];
  const busybox = peerPath('static busybox');
  const files = [...programs, ...programs.flatMap(librariesOf), ...ringsideFiles(), ...(contents.files ?? [])];
  const root = mkdtempSync(`${path}.root-`);
  try {
    for (const point of MOUNT_POINTS) mkdirSync(join(root, point), { recursive: true });
    for (const file of new Set(files)) {
      mkdirSync(dirname(join(root, file)), { recursive: true });
      // Links lead out of what is copied, so what they name is copied in their place.
      cpSync(file, join(root, file), { recursive: true, dereference: true });
    }
    mkdirSync(join(root, 'bin'), { recursive: true });
    cpSync(busybox, join(root, 'bin/busybox'));
    symlinkSync('busybox', join(root, 'bin/sh'));
    const options = ['-q', '-F', '-t', 'ext4', '-O', '^has_journal', '-m', '0', '-d', root];
    execFileSync(peerPath('mkfs.ext4'), [...options, path, SIZE], { stdio: ['ignore', 'ignore', 'pipe'] });
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
};
