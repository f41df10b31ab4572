use countdown::FfnTrace;
use countdown::train::*;
use std::time::Instant;
fn main() {
    let (h, f, n) = (896usize, 4864usize, 8192usize);
    let rank = 128;
    let mut s = 12345u64;
    let mut rnd = move || {
        s = s
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        ((s >> 40) as f32 / (1u64 << 24) as f32) * 2.0 - 1.0
    };
    let mut data = LayerData::new(
        0,
        Target::Weighted,
        0.7,
        vec![1.0; f],
        h,
        Samples::in_memory(h, n),
    );
    let t = Instant::now();
    let (mut x, mut g, mut u) = (
        vec![0f32; 256 * h],
        vec![0f32; 256 * f],
        vec![0f32; 256 * f],
    );
    g.iter_mut().for_each(|v| *v = rnd());
    u.iter_mut().for_each(|v| *v = rnd());
    let mut push = std::time::Duration::ZERO;
    for b in 0..n / 256 + 1 {
        x.iter_mut().for_each(|v| *v = rnd());
        let t = Instant::now();
        data.push(
            if b == 0 {
                Part::HeldOut
            } else {
                Part::Training
            },
            &FfnTrace {
                layer: 0,
                start: 0,
                inter: f,
                input: &x,
                gate: &g,
                up: &u,
            },
        )
        .unwrap();
        push += t.elapsed();
    }
    println!(
        "labels {:.0} tokens/s (all {:?})",
        n as f64 / push.as_secs_f64(),
        t.elapsed()
    );
    let standard = data.standard(Spread::Unit);
    let students: Vec<(&str, Box<dyn Student>)> = vec![
        (
            "low-rank",
            Box::new(LowRank {
                hidden: h,
                inter: f,
                rank,
            }),
        ),
        (
            "product",
            Box::new(Product {
                hidden: h,
                inter: f,
                rank,
                act: countdown::kernels::cpu::Act::Silu,
                weight: vec![1.0; f],
                floor: 0.1,
            }),
        ),
        (
            "ternary",
            Box::new(Ternary {
                hidden: h,
                inter: f,
            }),
        ),
    ];
    for threads in [2] {
        for (name, student) in &students {
            for batch in [1024, 2048] {
                let schedule = Schedule {
                    epochs: 3,
                    rate: 1e-3,
                    batch,
                    seed: 1,
                };
                let mut trainer = Trainer::new(&**student, &standard, schedule, threads).unwrap();
                let p: Vec<f32> = (0..student.parameters())
                    .map(|i| ((i * 7919) % 1000) as f32 * 1e-4 - 0.05)
                    .collect();
                let mut state = trainer.start(&mut data, p).unwrap();
                let mut best = f64::MAX;
                for _ in 0..2 {
                    let t = Instant::now();
                    let c = cpu();
                    trainer.epoch(&mut data, &mut state).unwrap();
                    best = best.min(t.elapsed().as_secs_f64());
                    print!("[cpu {:.2}] ", cpu() - c);
                }
                println!(
                    "{name} batch {batch} threads {threads}: {:.0} tokens/s, best of 2; 50k tokens {:.1} s",
                    n as f64 / best,
                    50e3 / n as f64 * best
                );
            }
        }
    }
}
fn cpu() -> f64 {
    let s = std::fs::read_to_string("/proc/self/stat").unwrap();
    let v: Vec<&str> = s.rsplit(')').next().unwrap().split_whitespace().collect();
    (v[11].parse::<f64>().unwrap() + v[12].parse::<f64>().unwrap()) / 100.0
}
