/** What a transport lets the queue watch see of a device: plain values of the moment, nothing that changes anything. */

/** A queue as the driver set it up. */
export interface ObservedQueue {
  readonly index: number;
  /** Entries; before the driver said, as many as it can have. */
  readonly size: number;
  /** Whether the device serves it. */
  readonly started: boolean;
  /** Addresses as the driver wrote them: guest physical, or of the IOMMU where ACCESS_PLATFORM is accepted. */
  readonly availRing: number;
  readonly usedRing: number;
}

export interface ObservedDevice {
  readonly deviceId: number;
  /** The Status register. */
  readonly status: number;
  /** Accepted by the driver; 0 before FEATURES_OK. */
  readonly features: bigint;
  /** How often its queues were started: two looks with the same number saw the same life of a ring. */
  readonly activations: number;
  readonly queues: readonly ObservedQueue[];
  /** Whether the back end is there; undefined for a device without one. */
  readonly backendConnected: boolean | undefined;
}

/** Translates for one device behind an IOMMU. */
export interface IovaLookup {
  find(iova: number): { readonly iova: number; readonly size: number; readonly userAddress: number } | undefined;
}

export interface ObservedSlot {
  readonly id: string;
  readonly slot: number;
  readonly device: ObservedDevice;
  /** What the IOMMU maps for the device; undefined where there is none for it. */
  readonly iommu: IovaLookup | undefined;
}
