// What is looked at stands in the address, so that it can be kept, sent and gone back to:
// #case=<id>&slice=3&mask=0&boxes=0&below=1&heat=<title> or #section=<name>. Slices count from 1.

const address = {
  read() {
    return new URLSearchParams(location.hash.slice(1));
  },
  // Changes values without a step in the history; null removes one.
  set(changes) {
    const old = this.read();
    const now = new URLSearchParams();
    for (const name of ['section', 'case', 'slice', 'mask', 'boxes', 'below', 'heat']) {
      const values = name in changes ? changes[name] : old.getAll(name);
      for (const value of values === null ? [] : [values].flat()) now.append(name, value);
    }
    try {
      history.replaceState(null, '', `#${now}`);
    } catch {
      // A browser may forbid it for a file; the page works all the same.
    }
  },
};

// What a reader switched on or off in one case holds for the next, unless the address says otherwise.
const preferences = { mask: true, boxes: true, below: false, heat: [] };

const linkTo = (values) => `#${new URLSearchParams(values)}`;
