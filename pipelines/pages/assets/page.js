// Charts, and the filter of a page of several runs. Everything but the charts is readable without it.
(() => {
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const short = v => v == null ? '–' : Math.abs(v) >= 1e6 || (v !== 0 && Math.abs(v) < 1e-3)
    ? v.toExponential(2) : (+v.toPrecision(5)).toLocaleString('en', {maximumFractionDigits: 10});
  const axisNumber = v => v == null ? '' : v !== 0 && (Math.abs(v) >= 1e6 || Math.abs(v) < 1e-3)
    ? v.toExponential().replace('e+', 'e') : v.toLocaleString('en', {maximumFractionDigits: 6});
  const FONT = '13px system-ui, sans-serif', HEIGHT = 260, NEAR = 5, FEW = 20;
  const BAD = ['skipped_update', 'bad_samples', 'rollback'];
  const figures = [...document.querySelectorAll('figure.chart')];
  const marks = JSON.parse(document.querySelector('#marks')?.textContent ?? '[]');
  const hiddenRuns = new Set();

  function around(u, min, max, percent) {
    if (min == null) return [0, 1];
    const pad = 0.06 * (max - min) || Math.abs(min) * 0.1 || 0.5;
    return [min - pad, percent && max <= 100 ? Math.min(100, max + pad) : max + pad];
  }

  function drawMarks(u) {
    const {ctx, bbox} = u;
    ctx.save();
    ctx.setLineDash([6, 5]);
    ctx.lineWidth = 1.4 * devicePixelRatio;
    for (const mark of marks) {
      const x = u.valToPos(mark.step, 'x', true);
      if (x < bbox.left || x > bbox.left + bbox.width || hiddenRuns.has(mark.run)) continue;
      ctx.strokeStyle = css(BAD.includes(mark.kind) ? '--bad' : '--mark');
      ctx.beginPath(); ctx.moveTo(x, bbox.top); ctx.lineTo(x, bbox.top + bbox.height); ctx.stroke();
    }
    ctx.restore();
  }

  function tellMark(u, out, several) {
    const left = u.cursor.left;
    const near = left < 0 ? [] : marks.filter(
      mark => !hiddenRuns.has(mark.run) && Math.abs(u.valToPos(mark.step, 'x') - left) < NEAR);
    out.textContent = near.slice(0, 2).map(
      mark => `${several ? mark.run + ', ' : ''}step ${mark.step.toLocaleString('en')}: ${mark.text}`).join('; ');
  }

  function axis(side, size) {
    return {stroke: css('--dim'), font: FONT, ticks: {stroke: css('--line'), width: 1},
      grid: {stroke: css('--line'), width: 1}, values: (u, ticks) => ticks.map(axisNumber), ...size};
  }

  function seriesOf(curve) {
    return {label: curve.name, stroke: css('--c' + curve.colour), width: 1.8, spanGaps: true,
      dash: curve.dashed ? [8, 4] : undefined, value: (u, v) => short(v),
      points: {show: curve.steps.length <= FEW, size: 6}, show: !hiddenRuns.has(curve.name)};
  }

  function draw(figure) {
    const chart = JSON.parse(figure.querySelector('script').textContent);
    const place = figure.querySelector('.plot'), out = figure.querySelector('output');
    const data = uPlot.join([...chart.curves.map(curve => [curve.steps, curve.values]),
      [[0, chart.last], [null, null]]]);  // the last table makes all charts end at the same step
    data.pop();
    const several = chart.curves.length > 1;
    const width = values => 16 + 7.5 * Math.max(3, ...(values || []).map(value => String(value).length));
    figure.uplot = new uPlot({
      width: place.clientWidth, height: HEIGHT,
      scales: {x: {time: false},
        y: chart.log ? {distr: 3} : {range: (u, min, max) => around(u, min, max, chart.percent)}},
      axes: [axis(2, {size: 34, space: 70}), axis(3, {size: (u, values) => width(values), space: 36})],
      series: [{label: 'step', value: (u, v) => v == null ? '–' : v.toLocaleString('en')},
        ...chart.curves.map(seriesOf)],
      cursor: {sync: {key: 'steps', setSeries: several}, drag: {x: true, y: false}, focus: {prox: 30}},
      focus: {alpha: several ? 0.35 : 1},
      hooks: {draw: [u => drawMarks(u)], setCursor: [u => tellMark(u, out, several)]},
    }, data, place);
    for (const name of place.querySelectorAll('.u-legend .u-series:not(:first-child) th')) {
      name.tabIndex = 0;
      name.setAttribute('role', 'button');
      name.addEventListener('keydown', event => {
        if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); name.click(); }
      });
    }
  }

  function drawAll() {
    for (const figure of figures) {
      figure.uplot?.destroy();
      draw(figure);
    }
  }

  if (figures.length) {
    drawAll();
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', drawAll);
    const watcher = new ResizeObserver(entries => {
      for (const {target} of entries) {
        const plot = target.closest('figure').uplot;
        if (plot.width !== target.clientWidth) plot.setSize({width: target.clientWidth, height: HEIGHT});
      }
    });
    for (const figure of figures) watcher.observe(figure.querySelector('.plot'));
  }

  const filter = document.querySelector('#filter');
  filter?.addEventListener('input', () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = run => words.every(word => run.toLowerCase().includes(word));
    hiddenRuns.clear();
    for (const element of document.querySelectorAll('[data-run]')) {
      element.hidden = !fits(element.dataset.run);
      if (element.hidden) hiddenRuns.add(element.dataset.run);
    }
    for (const {uplot} of figures)
      uplot.series.forEach((line, index) => {
        if (index && line.show !== fits(line.label)) uplot.setSeries(index, {show: fits(line.label)}, true, false);
      });
    for (const {uplot} of figures) uplot.redraw(false);
  });
})();
