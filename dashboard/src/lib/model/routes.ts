// The page's places, as the part of its address behind `#`.

export type Route = 'cluster' | 'chat';

export function routeOf(hash: string): Route {
  return hash.replace(/^#\/?/, '') === 'chat' ? 'chat' : 'cluster';
}

export function hrefOf(route: Route): string {
  return route === 'chat' ? '#/chat' : '#/';
}
