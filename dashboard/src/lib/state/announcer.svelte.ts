// What screen readers are told when a command was carried out; drawn by App as a live region.

class Announcer {
  words = $state('');

  say(words: string): void {
    this.words = words;
  }
}

export const announcer = new Announcer();
