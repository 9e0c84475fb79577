// What the page's charts need of Apache ECharts, and no more. echarts.js beside this file is made of it:
//   npm install echarts@6.1.0 esbuild@0.28.2
//   npx esbuild entry.js --bundle --minify --format=iife --global-name=echarts --target=es2020 \
//     --legal-comments=eof --outfile=echarts.js
import { use, init } from "echarts/core";
import { BarChart, LineChart, SankeyChart } from "echarts/charts";
import { GridComponent, TooltipComponent, LegendComponent } from "echarts/components";
import { SVGRenderer } from "echarts/renderers";

use([BarChart, LineChart, SankeyChart, GridComponent, TooltipComponent, LegendComponent, SVGRenderer]);

export { init };
