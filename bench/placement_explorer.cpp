// Tries placement formulas on a trace, a hundred times quicker than `treadle simulate`, which it
// agrees with to the core-hour for the policies that both have. For docs/placement-study.md.
//
//   zcat azure2017-dev.csv.gz | tail -n +2 |
//     awk -F, '{print $2, $3, $4, $5, $6 == "" ? -1 : $6}' > trace.txt
//   g++ -O3 -march=native -o explorer bench/placement_explorer.cpp
//   ./explorer trace.txt FROM TO SEEDS HOSTS_SMALL HOSTS_LARGE [FIRST_FORMULA [LAST_FORMULA]]
//
// FROM and TO are parts of the trace's time (0 to 1); 0 hosts: as many for the part's peak as 700
// and 1230 are for the whole trace's. Seed 0 keeps the order of the file; others shuffle the
// batches that come at the same moment. Prints core-hours lost and refusals by size on the small
// cluster, and host-hours on the large one: means over the seeds, and standard deviations.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <numeric>
#include <queue>
#include <random>
#include <string>
#include <tuple>
#include <vector>

struct Vm { double at, until; int batch, cores; double gib; int size; double expected = 3600; };
struct Host { int cores; double gib; int vms; int batch; double busy_until = 0; int turn = 0; std::map<int, double> ends = {}; };
constexpr int CORES = 48;
constexpr double GIB = 128;

// What a formula may go by: the host before, the VM, and the part of the hosts that is empty.
using Formula = std::function<double(const Host&, const Vm&, double)>;
struct Named { std::string name; Formula score; };
struct Result { double lost = 0, host_hours = 0; double asked[3] = {}, refused[3] = {}; };

static double begin_s, end_s;
static std::mt19937_64 chance(1);

static double left_cores(const Host& h, const Vm& v) { return (h.cores - v.cores) / double(CORES); }
static double left_gib(const Host& h, const Vm& v) { return (h.gib - v.gib) / GIB; }
static double best(const Host& h, const Vm& v) { return -left_cores(h, v) - left_gib(h, v); }

// Cores that no memory is left for, as a part, at `k` parts of cores to one of memory.
static double stranded(double cores, double gib, double k) { return std::max(0.0, cores - k * gib); }
static double strands(const Host& h, const Vm& v, double k) {
  return stranded(left_cores(h, v), left_gib(h, v), k) - stranded(h.cores / double(CORES), h.gib / GIB, k);
}
static Formula balanced(double k, double weight, double opening, double scarce) {
  return [=](const Host& h, const Vm& v, double empty) {
    return best(h, v) - weight * strands(h, v, k) - (h.vms == 0 && empty >= scarce ? opening : 0);
  };
}

static const double SIZES[16][2] = {
    {1, .75}, {1, 1.75}, {1, 2}, {2, 3.5}, {2, 4}, {2, 14}, {2, 16}, {4, 7}, {4, 8}, {4, 28},
    {4, 32}, {8, 14}, {8, 16}, {8, 56}, {8, 64}, {16, 112}};
static double fragments(double cores, double gib) {
  int unfit = 0;
  for (auto& s : SIZES) unfit += cores < s[0] || gib < s[1];
  return (cores / CORES + gib / GIB) / 3 * unfit / 16;
}

static std::vector<Named> formulas() {
  std::vector<Named> all = {
      {"best-fit", [](const Host& h, const Vm& v, double) { return best(h, v); }},
      {"balanced-fit", balanced(1.5, 10, 100, .1)},
      {"best-fit-memory", [](const Host& h, const Vm& v, double) { return -left_gib(h, v); }},
      {"best-fit-cpu", [](const Host& h, const Vm& v, double) { return -left_cores(h, v); }},
      {"first-fit", [](const Host&, const Vm&, double) { return 0.0; }},
      {"worst-fit", [](const Host& h, const Vm& v, double) { return -best(h, v); }},
      {"random", [](const Host&, const Vm&, double) { return double(chance()); }},
      {"dot-product", [](const Host& h, const Vm& v, double) {
         return h.cores / double(CORES) * v.cores / CORES + h.gib / GIB * v.gib / GIB; }},
      {"cosine", [](const Host& h, const Vm& v, double) {
         double a = h.cores / double(CORES), b = h.gib / GIB, p = v.cores / double(CORES), q = v.gib / GIB;
         return (a * p + b * q) / std::sqrt((a * a + b * b) * (p * p + q * q)); }},
      {"fragmentation-aware", [](const Host& h, const Vm& v, double) {
         return fragments(h.cores, h.gib) - fragments(h.cores - v.cores, h.gib - v.gib) + best(h, v) / 1000; }},
      {"lifetime-aware", [](const Host& h, const Vm& v, double) {
         double over = std::max(v.at + v.expected - h.busy_until, 0.0);
         return -std::floor(std::log2(1 + over / 3600)) + best(h, v) / 1000; }},
      {"round-robin", [](const Host& h, const Vm&, double) { return -double(h.turn); }},
      {"largest of what is left", [](const Host& h, const Vm& v, double) {
         return -std::max(left_cores(h, v), left_gib(h, v)); }},
      {"cores half", [](const Host& h, const Vm& v, double) { return -.5 * left_cores(h, v) - left_gib(h, v); }},
      {"imbalance 0.3", [](const Host& h, const Vm& v, double) {
         return best(h, v) - .3 * std::fabs(left_cores(h, v) - left_gib(h, v)); }},
      {"same batch 0.1", [](const Host& h, const Vm& v, double) { return best(h, v) + (h.batch == v.batch) * .1; }},
      {"stranding, never open", balanced(1.5, 10, 100, 0)},
      {"stranding, always open", balanced(1.5, 10, 0, 0)},
      {"balanced k=1.25", balanced(1.25, 10, 100, .1)},
      {"balanced k=1.75", balanced(1.75, 10, 100, .1)},
      {"balanced weight 3", balanced(1.5, 3, 100, .1)},
      {"balanced weight 30", balanced(1.5, 30, 100, .1)},
      {"balanced scarce 0.05", balanced(1.5, 10, 100, .05)},
      {"balanced scarce 0.2", balanced(1.5, 10, 100, .2)},
      {"balanced scarce 0.3", balanced(1.5, 10, 100, .3)},
  };
  return all;
}

// Lifetimes as the predictor size-means learns them: the geometric mean of those that have ended, of
// the same size, else of all, else an hour.
struct SizeMeans {
  std::map<std::pair<int, double>, std::pair<double, int>> sums;
  double expect(const Vm& v) const {
    for (auto key : {std::pair(v.cores, v.gib), std::pair(0, 0.0)}) {
      auto known = sums.find(key);
      if (known != sums.end()) return std::exp(known->second.first / known->second.second);
    }
    return 3600;
  }
  void ended(const Vm& v) {
    for (auto key : {std::pair(v.cores, v.gib), std::pair(0, 0.0)}) {
      auto& [sum, count] = sums[key];
      sum += std::log(std::max(v.until - v.at, 1.0));
      count++;
    }
  }
};

static Result run(const std::vector<Vm>& vms, int count, const Named& tried) {
  const Formula& score = tried.score;
  bool expects = tried.name == "lifetime-aware", turns = tried.name == "round-robin";
  SizeMeans means;
  int last = -1;
  std::vector<Host> hosts(count, Host{CORES, GIB, 0, -1});
  using Leaving = std::tuple<double, int, int>;
  std::priority_queue<Leaving, std::vector<Leaving>, std::greater<Leaving>> leaving;
  Result out;
  double now = begin_s;
  int busy = 0;
  auto pass = [&](double t) {
    t = std::min(t, end_s);
    if (t > now) { out.host_hours += (t - now) * busy / 3600; now = t; }
  };
  for (size_t i = 0; i < vms.size(); i++) {
    Vm v = vms[i];
    while (!leaving.empty() && std::get<0>(leaving.top()) <= v.at) {
      auto [t, which, where] = leaving.top();
      leaving.pop();
      pass(t);
      Host& h = hosts[where];
      h.cores += vms[which].cores; h.gib += vms[which].gib;
      if (--h.vms == 0) { busy--; h.batch = -1; }
      if (expects) {
        means.ended(vms[which]);
        h.ends.erase(which);
        h.busy_until = 0;
        for (auto& [_, end] : h.ends) h.busy_until = std::max(h.busy_until, end);
      }
    }
    pass(v.at);
    if (expects) v.expected = means.expect(v);
    if (turns) for (int k = 0; k < count; k++) hosts[k].turn = (k - last - 1 + count) % count;
    double empty = 1 - double(busy) / count, most = 0;
    int chosen = -1;
    for (int k = 0; k < count; k++) {
      const Host& h = hosts[k];
      if (h.cores < v.cores || h.gib < v.gib) continue;
      double s = score(h, v, empty);
      if (chosen < 0 || s > most) { most = s; chosen = k; }
    }
    out.asked[v.size]++;
    if (chosen < 0) {
      out.refused[v.size]++;
      out.lost += std::max(0.0, std::min(v.until, end_s) - v.at) / 3600 * v.cores;
      continue;
    }
    Host& h = hosts[chosen];
    h.cores -= v.cores; h.gib -= v.gib; h.batch = v.batch;
    if (h.vms++ == 0) busy++;
    last = chosen;
    if (expects) { h.ends[i] = v.at + v.expected; h.busy_until = std::max(h.busy_until, h.ends[i]); }
    if (v.until < 1e15) leaving.emplace(v.until, int(i), chosen);
  }
  pass(end_s);
  return out;
}

static std::vector<Vm> shuffled(const std::vector<Vm>& vms, int seed) {
  if (seed == 0) return vms;
  std::mt19937_64 rng(seed);
  std::vector<Vm> out;
  for (size_t i = 0, j; i < vms.size(); i = j) {
    std::vector<std::vector<Vm>> batches;
    std::map<int, size_t> place;
    for (j = i; j < vms.size() && vms[j].at == vms[i].at; j++) {
      auto [where, fresh] = place.try_emplace(vms[j].batch, batches.size());
      if (fresh) batches.emplace_back();
      batches[where->second].push_back(vms[j]);
    }
    std::shuffle(batches.begin(), batches.end(), rng);
    for (auto& batch : batches) out.insert(out.end(), batch.begin(), batch.end());
  }
  return out;
}

static int peak_cores(const std::vector<Vm>& vms) {
  using Leaving = std::pair<double, int>;
  std::priority_queue<Leaving, std::vector<Leaving>, std::greater<Leaving>> leaving;
  int cores = 0, most = 0;
  for (auto& v : vms) {
    while (!leaving.empty() && leaving.top().first <= v.at) { cores -= leaving.top().second; leaving.pop(); }
    most = std::max(most, cores += v.cores);
    leaving.emplace(v.until, v.cores);
  }
  return most;
}

static std::pair<double, double> spread(const std::vector<double>& x) {
  double mean = std::accumulate(x.begin(), x.end(), 0.0) / x.size(), sum = 0;
  for (double y : x) sum += (y - mean) * (y - mean);
  return {mean, std::sqrt(sum / std::max<size_t>(1, x.size() - 1))};
}

int main(int argc, char** argv) {
  if (argc < 7) { std::fprintf(stderr, "see the head of this file for its arguments\n"); return 2; }
  double from = atof(argv[2]), to = atof(argv[3]);
  int seeds = atoi(argv[4]), few = atoi(argv[5]), many = atoi(argv[6]);
  std::FILE* file = std::fopen(argv[1], "r");
  if (!file) { std::perror(argv[1]); return 1; }
  std::vector<Vm> all, vms;
  double at, mib, life;
  int batch, cores;
  while (std::fscanf(file, "%lf %d %d %lf %lf", &at, &batch, &cores, &mib, &life) == 5) {
    double part = std::max(cores / double(CORES), mib / 1024 / GIB);
    all.push_back({at, life < 0 ? 1e18 : at + life, batch, cores, mib / 1024, part >= 1 / 8. ? 2 : part >= 1 / 24. ? 1 : 0});
  }
  if (all.empty()) { std::fprintf(stderr, "%s has no rows\n", argv[1]); return 1; }
  double first = all.front().at, last = all.back().at;
  for (auto& v : all)
    if (v.at >= first + from * (last - first) && v.at <= first + to * (last - first)) vms.push_back(v);
  begin_s = vms.front().at; end_s = vms.back().at;
  int peak = peak_cores(vms);
  if (!few) few = int(peak * .762 / CORES);
  if (!many) many = int(peak * 1.338 / CORES);
  std::printf("%zu VMs, %d cores at the peak, %d and %d hosts, %d seeds\n", vms.size(), peak, few, many, seeds);
  auto tried = formulas();
  int start = argc > 7 ? atoi(argv[7]) : 0, stop = argc > 8 ? atoi(argv[8]) : int(tried.size()) - 1;
  for (int n = start; n <= stop && n < int(tried.size()); n++) {
    std::vector<double> lost, host_hours;
    double refused[3] = {};
    for (int seed = 0; seed < seeds; seed++) {
      auto order = shuffled(vms, seed);
      Result small = run(order, few, tried[n]), large = run(order, many, tried[n]);
      lost.push_back(small.lost);
      host_hours.push_back(large.host_hours);
      for (int k = 0; k < 3; k++) refused[k] += 100 * small.refused[k] / std::max(1.0, small.asked[k]) / seeds;
    }
    auto [l, ls] = spread(lost);
    auto [h, hs] = spread(host_hours);
    std::printf("%-26s lost %8.0f (%5.0f)  refused %% %5.2f %5.2f %5.2f  host-hours %7.0f (%4.0f)\n",
                tried[n].name.c_str(), l, ls, refused[0], refused[1], refused[2], h, hs);
    std::fflush(stdout);
  }
}
