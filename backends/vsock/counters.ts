/** What happened to packets and connections, for the log and for tests. */

export class Counters {
  /** Packets taken from guests, and given to them. */
  transmitted = 0;
  received = 0;
  /** Connections that were established. */
  connections = 0;
  /** RST packets sent. */
  resets = 0;
  /** Packets whose sender is not the guest they came from: dropped. */
  spoofed = 0;
  /** Packets without a whole header. */
  malformed = 0;
  /** Buffers of the driver that are shorter than a header. */
  unusable = 0;
  /** Connections refused because a limit was reached. */
  refused = 0;
  /** Connections ended because of more data than there is, or than may come. */
  overruns = 0;
  /** Connections ended by a timeout. */
  timeouts = 0;

  /** Everything that is not 0, by name. */
  summary(): Record<string, number> {
    return Object.fromEntries(Object.entries(this).filter(([, count]) => count !== 0));
  }
}
