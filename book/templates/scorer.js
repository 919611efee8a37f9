/* How search ranks what it finds: chapters before the library reference. The rest are Sphinx's own
   numbers. */
var Scorer = {
  score: ([docname, , , , score]) =>
    docname.startsWith("chapters/") ? score + 20 : docname.startsWith("reference/") ? score - 20 : score,
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
