// Keeps a list that grows at its end in view, unless a person has scrolled up to read.
import type { Attachment } from 'svelte/attachments';

const NEAR_END_PX = 48;

export function followEnd(watched: () => unknown): Attachment<HTMLElement> {
  return (element) => {
    let isAtEnd = true;
    const look = () => {
      isAtEnd = element.scrollHeight - element.scrollTop - element.clientHeight < NEAR_END_PX;
    };
    element.addEventListener('scroll', look, { passive: true });
    $effect(() => {
      watched();
      if (isAtEnd) element.scrollTop = element.scrollHeight;
    });
    return () => element.removeEventListener('scroll', look);
  };
}
