/** The packet that tells switches where an address is now. Source: RFC 903. */

import { ETHERNET_ADDRESS_BYTES } from '../../protocol/virtio/net.ts';

const ETHERTYPE_RARP = 0x8035;
const ETHERTYPE_IPV4 = 0x0800;
const HARDWARE_ETHERNET = 1;
const REQUEST_REVERSE = 3;
/** Bytes of the shortest Ethernet frame, without its check sequence. */
const FRAME_BYTES = 60;

/** A broadcast RARP request of the given Ethernet address (6 bytes), as an Ethernet frame. */
export function rarpAnnouncement(address: Uint8Array): Uint8Array {
  const frame = new Uint8Array(FRAME_BYTES);
  const data = new DataView(frame.buffer);
  frame.fill(0xff, 0, ETHERNET_ADDRESS_BYTES);
  frame.set(address, 6);
  data.setUint16(12, ETHERTYPE_RARP);
  data.setUint16(14, HARDWARE_ETHERNET);
  data.setUint16(16, ETHERTYPE_IPV4);
  data.setUint8(18, ETHERNET_ADDRESS_BYTES);
  data.setUint8(19, 4);
  data.setUint16(20, REQUEST_REVERSE);
  frame.set(address, 22);
  frame.set(address, 32);
  return frame;
}
