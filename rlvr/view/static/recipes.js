"use strict";
// The recipe of a run, and where it differs from another's.

pages.recipes = {
  title: "Recipe",
  perRun: true,
  async show(parameters, holder) {
    const { run } = parameters;
    const runs = shared.state.map((one) => one.label);
    const other = runs.includes(parameters.with) && parameters.with !== run ? parameters.with : undefined;
    const [mine, theirs] = await Promise.all([api("recipe", { run }), other ? api("recipe", { run: other }) : null]);
    if (runs.length > 1) holder.append(h("div", { class: "bar" }, select("with", [["", "no other"], ...runs.filter((label) => label !== run).map((label) => [label, label])], other, (value) => change({ with: value }), "compare with")));
    if (!mine.text) holder.append(h("p", { class: "message" }, "This folder holds no recipe.yaml."));
    const keys = [...new Set([...Object.keys(mine.values), ...Object.keys(theirs?.values ?? {})])];
    const shown = (recipe, key) => (key in recipe.values ? String(recipe.values[key] ?? "null") : "not there");
    if (theirs) {
      const differing = keys.filter((key) => shown(mine, key) !== shown(theirs, key));
      const rows = differing.map((key) => h("tr", {}, h("td", {}, h("code", {}, key)), h("td", {}, shown(mine, key)), h("td", {}, shown(theirs, key))));
      holder.append(h("h2", {}, differing.length ? `${differing.length} of ${keys.length} keys differ` : "The two recipes are the same"),
        differing.length ? h("div", { class: "wide" }, h("table", { class: "diff" }, h("thead", {}, h("tr", {}, ["key", run, other].map((one) => h("th", {}, one)))), h("tbody", {}, rows))) : null);
    }
    holder.append(h("h2", {}, `recipe.yaml of ${run}`), h("pre", { class: "text", tabindex: 0 }, mine.text));
    return {};
  },
};
