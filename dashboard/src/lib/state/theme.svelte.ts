// Light or dark: as the system says, unless a person chose; the choice is kept in this browser.

export type Theme = 'system' | 'light' | 'dark';

const KEY = 'exo-theme';
const ORDER: Theme[] = ['system', 'light', 'dark'];

class ThemeChoice {
  value = $state<Theme>(stored());

  next(): Theme {
    return ORDER[(ORDER.indexOf(this.value) + 1) % ORDER.length] ?? 'system';
  }

  choose(theme: Theme): void {
    this.value = theme;
    this.apply();
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // Storage may be forbidden; the choice then lasts as long as the page.
    }
  }

  apply(): void {
    if (this.value === 'system') delete document.documentElement.dataset['theme'];
    else document.documentElement.dataset['theme'] = this.value;
  }
}

function stored(): Theme {
  try {
    const value = localStorage.getItem(KEY);
    return ORDER.find((theme) => theme === value) ?? 'system';
  } catch {
    return 'system';
  }
}

export const theme = new ThemeChoice();
