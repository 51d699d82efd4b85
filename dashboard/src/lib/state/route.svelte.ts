// Which part of the page its address names. Only narrow screens show one part at a time.
import { routeOf, type Route } from '../model/routes';

class CurrentRoute {
  value = $state<Route>(routeOf(location.hash));

  follow(): void {
    this.value = routeOf(location.hash);
  }
}

export const route = new CurrentRoute();
