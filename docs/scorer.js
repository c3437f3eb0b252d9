// Sphinx's own scores (themes/basic/static/searchtools.js), except that a heading which contains the whole query comes before
// pages that have its words somewhere: with equal scores 'out of memory' found other pages first.
var Scorer = {
  score: ([docname, title, anchor, descr, score, filename, kind]) => (kind === "title" ? 3 * score : score),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
