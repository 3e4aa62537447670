// The report reads without this: it opens a sentence that a link leads to, steps through what was
// not kept, and finds words.
const box = document.querySelector('.find input'), said = document.querySelector('output');
const clauses = [...document.querySelectorAll('.clause')];
const chips = [...document.querySelectorAll('.chip input')];
const quiet = '.pass, .unpromised';

function open() {
  const it = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!it) return;
  if (it.matches('.clause')) {
    if (!it.checkVisibility()) reset();
    it.open = true;
    it.scrollIntoView({block: 'center'});
  }
}
function reset() {
  chips[0].checked = true;
  box.value = '';
  find();
}
function find() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  document.body.classList.toggle('finding', words.length > 0);
  for (const one of clauses) {
    const tests = [...one.querySelectorAll('.test code')].map(code => code.textContent);
    const text = [one.id, one.firstElementChild.textContent, ...tests].join(' ').toLowerCase();
    one.classList.toggle('miss', !words.every(word => text.includes(word)));
  }
  const only = chips.find(chip => chip.checked).id.slice(5);
  const hits = clauses.filter(one => !one.matches('.miss')
    && (only === 'all' || one.dataset.verdicts.split(' ').includes(only))).length;
  const all = clauses.filter(one => !one.matches('.unpromised')).length;
  said.textContent = words.length || only !== 'all' ? `${hits} of ${all}` : '';
}
function chosen() {
  find();
  if (!chips[0].checked) document.getElementById('pages').scrollIntoView();
}
document.querySelector('.find').hidden = false;
box.addEventListener('input', () => { find(); document.getElementById('pages').scrollIntoView(); });
for (const chip of chips) chip.addEventListener('change', chosen);
addEventListener('hashchange', open);
find();
open();
addEventListener('keydown', event => {
  if (!['n', 'p'].includes(event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches('input')) return;
  const all = clauses.filter(one => !one.matches(quiet) && one.checkVisibility())
    .map(one => one.firstElementChild);
  const here = all.indexOf(document.activeElement);
  const next = all.at(event.key === 'n' ? (here + 1) % all.length : Math.max(here, 0) - 1);
  if (next) { next.focus(); next.scrollIntoView({block: 'center'}); }
});
