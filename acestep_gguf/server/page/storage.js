// What this browser keeps for the page: settings for good, the key for the session of a tab.

/** A storage of the browser, or, where it lets the page keep nothing, one that lasts as long as the page. */
function storage(name) {
  try {
    return window[name];
  } catch {
    const kept = new Map();
    return { getItem: (key) => kept.get(key) ?? null, setItem: (key, value) => kept.set(key, value) };
  }
}

export const settings = storage("localStorage");
export const session = storage("sessionStorage");
