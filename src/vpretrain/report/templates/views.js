(() => {
  const section = document.currentScript.parentElement;
  const find = (name) => section.querySelector(".vp-" + name);
  const data = JSON.parse(section.querySelector('script[type="application/json"]').textContent);
  const signed = (number) => (number === null ? "–" : (number < 0 ? "−" : "+") + String(Math.abs(Number(number.toPrecision(3)))));
  const slider = find("point");

  const figures = data.points[0].images.map(() => {
    const figure = document.createElement("figure");
    const images = document.createElement("div");
    images.append(...["crop", "mask", "view"].map(() => document.createElement("img")));
    figure.append(images, document.createElement("figcaption"));
    find("pictures").append(figure);
    return figure;
  });

  function show() {
    const number = Number(slider.value);
    const point = data.points[number];
    const when = point.step < 0 ? "before the first step" : `after step ${point.step + 1}`;
    const text =
      `${when}, ${point.seconds.toFixed(1)} s` +
      (point.alignment === null ? "" : `; value of the last meta update (${data.align}): ${signed(point.alignment)}`);
    find("count").textContent = text;
    slider.setAttribute("aria-valuetext", text);
    point.images.forEach((picture, index) => {
      const kept = `${(100 * picture.kept).toFixed(1)} %`;
      const name = `picture ${index + 1}`;
      const alts = [`${name}: crop`, `${name}: mask ${when}, ${kept} kept sharp`, `${name}: view ${when}`];
      figures[index].querySelectorAll("img").forEach((image, place) => {
        image.src = [picture.crop, picture.mask, picture.view][place];
        image.alt = alts[place];
      });
      figures[index].querySelector("figcaption").textContent =
        `${kept} kept sharp; value ` +
        (picture.value === null ? "not known yet" : `${signed(picture.value)}, unmasked ${signed(picture.value_unmasked)}`);
    });
  }

  const step = (by) => () => {
    slider.value = String(Number(slider.value) + by);
    show();
  };
  slider.addEventListener("input", show);
  find("back").addEventListener("click", step(-1));
  find("on").addEventListener("click", step(1));
  show();
})();
