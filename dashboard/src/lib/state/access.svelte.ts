// Which API key this tab shows, by its name: the key itself stays where requests are made.
import { keyId } from '../model/keys';
import { apiKey, keepApiKey } from '../services/key';
import { cluster } from './cluster.svelte';

class Access {
  keyId = $state(keyId(apiKey()));

  /** Show this key from now on; null: none. */
  use(key: string | null): void {
    keepApiKey(key);
    this.keyId = keyId(key);
    cluster.restart();
  }
}

export const access = new Access();
