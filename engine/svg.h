// svg.h: a line plot as an SVG file: axes with round figures, a grid, a legend.
#ifndef KILN_ENGINE_SVG_H
#define KILN_ENGINE_SVG_H

#include "backend/base.h"

typedef struct SvgPoint { double x, y; } SvgPoint;

typedef struct SvgCurve {
    const char *label;  // plain ASCII without <, > and &; NULL: not in the legend
    const char *colour; // as in CSS
    double width;
    const SvgPoint *points; // points that are not finite are left out
    int count;
} SvgCurve;

// Written whole or not at all. Values up to ten times the median of the last half of all curves are
// shown; what is higher (the first steps) is cut at the edge.
bool svg_plot(const char *path, const char *title, const char *x_label, const SvgCurve *curves,
              int count, Error *err);

#endif
