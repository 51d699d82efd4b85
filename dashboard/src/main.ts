// Starts the page.
import { mount } from 'svelte';
import App from './App.svelte';
import './app.css';
import { theme } from './lib/state/theme.svelte';

theme.apply();
mount(App, { target: document.body });
