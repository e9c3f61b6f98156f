/** Wakes whoever waits for a change. */
export class Bell {
  readonly #waiting = new Set<() => void>();

  /** Something has changed. */
  ring(): void {
    for (const wake of [...this.#waiting]) wake();
  }

  /** False after so many milliseconds without a ring. Throws the signal's reason when it is aborted. */
  wait(options: { signal?: AbortSignal | undefined; milliseconds?: number } = {}): Promise<boolean> {
    const { signal, milliseconds } = options;
    return new Promise((resolve, reject) => {
      if (signal?.aborted) {
        reject(signal.reason as Error);
        return;
      }
      const done = (): void => {
        clearTimeout(timer);
        this.#waiting.delete(wake);
        signal?.removeEventListener('abort', abort);
      };
      const wake = (): void => {
        done();
        resolve(true);
      };
      const abort = (): void => {
        done();
        reject(signal?.reason as Error);
      };
      const late = (): void => {
        done();
        resolve(false);
      };
      const timer = milliseconds === undefined ? undefined : setTimeout(late, Math.max(milliseconds, 0));
      this.#waiting.add(wake);
      signal?.addEventListener('abort', abort);
    });
  }
}

/** Waits. Throws the signal's reason when it is aborted. */
export async function pause(milliseconds: number, signal?: AbortSignal): Promise<void> {
  await new Bell().wait({ signal, milliseconds });
}
