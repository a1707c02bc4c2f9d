/**
 * A host with one address that can do little: it answers ARP requests and pings, asks for MAC addresses, and says what
 * answers came.
 */

import { ARP_REPLY, ARP_REQUEST, encodeArpReply, encodeArpRequest, parseArp, type Station } from '../packet/arp.ts';
import { type Echo, encodeEchoReply, encodeEchoRequest, ICMP_ECHO_REQUEST, parseEcho } from '../packet/ipv4.ts';

export interface HostEvents {
  /** Gives a frame to the network. */
  send(frame: Uint8Array): void;
  /** A station told where it is. */
  onStation(station: Station): void;
  /** A ping was answered; its data is in the frame. */
  onEchoReply(reply: Echo): void;
}

export class TinyHost {
  readonly station: Station;
  readonly #events: HostEvents;

  constructor(station: Station, events: HostEvents) {
    this.station = station;
    this.#events = events;
  }

  /** Takes a frame that arrived. What is for others, or makes no sense, is ignored. */
  receive(frame: Uint8Array): void {
    const arp = parseArp(frame);
    if (arp !== undefined) {
      if (arp.target.ip !== this.station.ip || (arp.operation !== ARP_REQUEST && arp.operation !== ARP_REPLY)) return;
      this.#events.onStation(arp.sender);
      if (arp.operation === ARP_REQUEST) this.#events.send(encodeArpReply(this.station, arp.sender));
      return;
    }
    if (!this.#isForUs(frame)) return;
    const echo = parseEcho(frame);
    if (echo === undefined || echo.toIp !== this.station.ip) return;
    if (echo.type === ICMP_ECHO_REQUEST) this.#events.send(encodeEchoReply(this.station, echo));
    else this.#events.onEchoReply(echo);
  }

  /** Asks everybody who has `ip`. */
  ask(ip: number): void {
    this.#events.send(encodeArpRequest(this.station, ip));
  }

  ping(to: Station, identifier: number, sequence: number, data: Uint8Array): void {
    this.#events.send(encodeEchoRequest(this.station, to, identifier, sequence, data));
  }

  #isForUs(frame: Uint8Array): boolean {
    return this.station.mac.every((byte, i) => frame[i] === byte);
  }
}
