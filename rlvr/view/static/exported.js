"use strict";
// In an exported file: responds to the page's questions from what the file holds.

(() => {
  const store = JSON.parse(document.getElementById("store").textContent);
  const missing = (what) => {
    throw new Error(`${what} is not in this exported file (${store.note}); rlvr view on the run's folder has all of it.`);
  };

  // words must all stand in the completion; a phrase next to each other, with * at its end a beginning: as the server does
  function searched(text, search) {
    const words = (one) => one.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
    const inside = words(text);
    return [...search.matchAll(/"([^"]*)"(\*?)|(\S+)/g)].every(([, quoted, star, word]) => {
      const isBegin = word === undefined ? star === "*" : word.endsWith("*");
      const wanted = words(word ?? quoted);
      const fits = (at) => wanted.every((one, k) => (isBegin && k === wanted.length - 1 ? inside[at + k]?.startsWith(one) : inside[at + k] === one));
      return !wanted.length || inside.some((_, at) => fits(at));
    });
  }

  function fits(record, query) {
    const outcomes = Object.entries(record.verdicts).map(([name, one]) => [name, one.outcome]);
    const [first, firstOutcome] = outcomes[0] ?? [];
    const outcomeOf = (term) => outcomes.find(([name]) => name === term)?.[1];
    const within = (value, low, high) => (low === undefined || (value !== null && value >= Number(low))) && (high === undefined || (value !== null && value <= Number(high)));
    const other = query.disagree && outcomeOf(query.disagree);
    return within(record.reward, query.reward_min, query.reward_max) && within(record.tokens, query.tokens_min, query.tokens_max)
      && within(record.step, query.step_min, query.step_max) && (!query.finish || record.finish_reason === query.finish)
      && (!query.problem || record.problem_id === query.problem) && (!query.content || record.content === query.content)
      && (!query.outcome || outcomeOf(query.term ?? first) === query.outcome)
      && (!query.disagree || (other !== undefined && (other === "CORRECT") !== (firstOutcome === "CORRECT")))
      && (!query.search || searched(record.text, query.search));
  }

  const row = (one) => ({
    id: one.id, step: one.step, group: one.group, sample: one.sample, problem: one.problem_id, reward: one.reward, advantage: one.advantage,
    outcomes: Object.fromEntries(Object.entries(one.verdicts).map(([name, verdict]) => [name, verdict.outcome])), finish: one.finish_reason, tokens: one.tokens, excerpt: one.excerpt,
  });

  const responses = {
    state: () => store.state,
    glossary: () => store.glossary,
    series: (query) => store.series[query.x ?? "step"],
    recipe: (query, run) => run.recipe,
    overview: (query, run) => run.overview,
    suspects: (query, run) => run.suspects,
    solved: (query, run) => run.solved,
    step: (query, run) => run.step[query.step ?? run.overview.last] ?? missing(`Step ${query.step}`),
    rollout: (query, run) => run.rollouts.find((one) => ["step", "group", "sample"].every((key) => one[key] === Number(query[key]))) ?? missing(`This rollout (step ${query.step}, group ${query.group}, sample ${query.sample})`),
    search(query, run) {
      let found = run.rollouts.filter((one) => fits(one, query));
      if (query.order === "newest") found = found.toReversed();
      const from = query.after ? found.findIndex((one) => one.id === Number(query.after)) + 1 : 0;
      return { rows: found.slice(from, from + 50).map(row), more: found.length > from + 50, count: found.length, counted: true };
    },
    problems(query, run) {
      const { rows, count, graded, low, high } = run.problems[query.order ?? "variable"];
      const found = rows.filter((one) => one.problem.toLowerCase().includes((query.search ?? "").toLowerCase()));
      const from = Number(query.offset ?? 0);
      return { rows: found.slice(from, from + 50), count: found.length, offset: from, all: count, graded, low, high };
    },
    problem: (query, run) => run.problem[query.problem] ?? missing(`Problem ${query.problem}`),
    completions: (query, run) => query.steps.split(",").map((step) => run.rollouts.filter((one) => one.problem_id === query.problem && one.step === Number(step))
      .sort((a, b) => Math.abs(a.sample - query.sample) - Math.abs(b.sample - query.sample))[0]).filter(Boolean),
  };

  window.exported = async (name, query) => structuredClone(responses[name](query, store.runs[query.run] ?? Object.values(store.runs)[0]));
  window.exported.note = store.note;
})();
